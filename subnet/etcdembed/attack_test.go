package etcdembed

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/overlayd/overlayd/subnet/who"
)

const (
	testPrefix = "/net"
	subnets    = testPrefix + "/subnets/"
	hosts      = testPrefix + "/overlayd/hosts/"
	tokens     = testPrefix + "/overlayd/tokens/"
	hostA      = "aaaa"
	hostB      = "bbbb"
)

// authority signs certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t}
	a.cert, a.key, a.file, _ = a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true}, time.Hour)
	return a
}

// issue makes a certificate, and files of it and its key.
func (a *authority) issue(c *x509.Certificate, life time.Duration) (*x509.Certificate, *ecdsa.PrivateKey, string, string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter, c.BasicConstraintsValid = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(life), true
	c.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	dir := a.t.TempDir()
	certFile, keyFile := filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key, certFile, keyFile
}

// template is what a certificate says: its name, URIs like "overlayd:host/a", and addresses.
func template(name string, says ...string) *x509.Certificate {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
	for _, s := range says {
		if ip := net.ParseIP(s); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			u, _ := url.Parse(s)
			c.URIs = append(c.URIs, u)
		}
	}
	return c
}

// rig is an etcd over TLS with its gate, a network in it, and who deals with it.
type rig struct {
	t        testing.TB
	ca       *authority
	server   *Server
	counted  *prometheus.Registry
	operator *clientv3.Client
	local    *clientv3.Client // by the unix socket
	a, b     *clientv3.Client // hosts, with a lease each
	old      *clientv3.Client // one whose certificate names no host id
	leaseA   clientv3.LeaseID
	leaseB   clientv3.LeaseID
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, ca: newAuthority(t), counted: prometheus.NewRegistry()}
	_, _, cert, key := r.ca.issue(template("server"), time.Hour)
	socket := filepath.Join(t.TempDir(), "etcd.sock")
	var err error
	r.server, err = Start(t.Context(), Config{
		Dir: t.TempDir(), Listen: "127.0.0.1:0", Socket: socket, Prefix: testPrefix, UnsafeNoFsync: true, Registerer: r.counted,
		CAFile: r.ca.file, CertFile: cert, KeyFile: key, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.server.Close)
	r.local = r.client("unix://"+socket, nil)
	r.operator = r.as(r.ca, template("operator", "overlayd:operator"))
	r.a = r.as(r.ca, template("a", "overlayd:host/"+hostA, "192.0.2.1", "2001:db8::1"))
	r.b = r.as(r.ca, template("b", "overlayd:host/"+hostB, "192.0.2.2"))
	r.old = r.as(r.ca, template("old", "192.0.2.3"))
	for key, value := range map[string]string{
		testPrefix + "/config": `{"Network":"10.5.0.0/16"}`, hosts + hostA: "{}", hosts + hostB: "{}", tokens + "t": "secret", "/other": "theirs",
	} {
		if _, err := r.operator.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	r.leaseA, r.leaseB = r.claim(r.a, "10.5.1.0-24", hostA, "192.0.2.1"), r.claim(r.b, "10.5.2.0-24", hostB, "192.0.2.2")
	return r
}

func (r *rig) client(endpoint string, conf *tls.Config) *clientv3.Client {
	r.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: conf, Logger: zap.NewNop()})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// as is who has a certificate; nil: none.
func (r *rig) as(ca *authority, says *x509.Certificate) *clientv3.Client {
	return r.asFor(ca, says, time.Hour)
}

func (r *rig) asFor(ca *authority, says *x509.Certificate, life time.Duration) *clientv3.Client {
	r.t.Helper()
	conf := &tls.Config{RootCAs: x509.NewCertPool()}
	conf.RootCAs.AddCert(r.ca.cert)
	if says != nil {
		cert, key, _, _ := ca.issue(says, life)
		conf.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
	}
	return r.client(r.server.Endpoint(), conf)
}

// claim is what a host does: a lease of etcd, and a key where there is none.
func (r *rig) claim(c *clientv3.Client, subnet, id, ip string) clientv3.LeaseID {
	r.t.Helper()
	var granted *clientv3.LeaseGrantResponse
	eventually(r.t, "a lease of etcd", func() (err error) { granted, err = c.Grant(r.t.Context(), 60); return err })
	got, err := c.Txn(r.t.Context()).If(clientv3.Compare(clientv3.ModRevision(subnets+subnet), "=", 0)).
		Then(clientv3.OpPut(subnets+subnet, value(id, ip), clientv3.WithLease(granted.ID))).Commit()
	if err != nil || !got.Succeeded || got.Header.Revision == 0 {
		r.t.Fatalf("claim %s: %v, %v", subnet, got, err)
	}
	return granted.ID
}

func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatalf("in vain: %s: %v", what, err)
}

// value is that of a lease.
func value(id, ip string) string {
	v := `{"PublicIP":"` + ip + `","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:96:93:0f:50:83"}`
	if id != "" {
		v += `,"HostID":"` + id + `"`
	}
	return v + "}"
}

// endpointsKey is where hosts say what containers they have.
const endpointsKey = testPrefix + "/" + endpoints

// endpoint is the value of one.
func endpoint(ips ...string) string {
	return fmt.Sprintf(`{"ips":["%s"],"name":"x"}`, strings.Join(ips, `","`))
}

func forThen(op clientv3.Op) clientv3.Op { return clientv3.OpTxn(nil, []clientv3.Op{op}, nil) }

// TestAttackEmbedded has host b, and who is nobody, try what they may not: etcd refuses it in a line that says who, what and
// why, counts it, and holds afterwards what it held before.
func TestAttackEmbedded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // a watch that is let in ends no sooner
	defer cancel()
	b, maintenance := r.b, pb.NewMaintenanceClient(r.b.ActiveConnection())
	const ofA, free = subnets + "10.5.1.0-24", subnets + "10.5.9.0-24"
	own := clientv3.WithLease(r.leaseB)
	err2 := func(_ any, err error) error { return err }
	if _, err := r.a.Put(ctx, endpointsKey+"default/aaaa/10.5.1.9", endpoint("10.5.1.9"), clientv3.WithLease(r.leaseA)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.operator.Put(ctx, testPrefix+"/overlayd/policy/default/deny", "{}"); err != nil {
		t.Fatal(err)
	}
	outside := func(ip string) string {
		return `{"PublicIP":"` + ip + `","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"a"},"Host":"laptop"}`
	}
	for key, ip := range map[string]string{"10.5.3.0-24": "0.0.0.0", "10.5.4.0-24": "192.0.2.3"} {
		if _, err := r.operator.Put(ctx, subnets+key, outside(ip)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := r.operator.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	attacks := []struct {
		name, want string
		try        func() error
	}{
		{"another's lease overwritten", `host "b" (bbbb) may not write "/net/subnets/10.5.1.0-24": the lease of host "" (aaaa) at 192.0.2.1 stands there`,
			func() error { return err2(b.Put(ctx, ofA, value(hostB, "192.0.2.2"), own)) }},
		{"another's lease overwritten as its host", `names host id "aaaa"`,
			func() error { return err2(b.Put(ctx, ofA, value(hostA, "192.0.2.2"), own)) }},
		{"another's lease overwritten in a transaction that compares", "stands there", func() error {
			got, err := b.Get(ctx, ofA)
			if err != nil {
				return nil
			}
			return err2(b.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(ofA), "=", got.Kvs[0].ModRevision)).
				Then(clientv3.OpPut(ofA, value(hostB, "192.0.2.2"), own)).Commit())
		}},
		{"another's lease overwritten by the other branch", "stands there", func() error {
			return err2(b.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(ofA), "=", 1)).
				Else(clientv3.OpPut(ofA, value(hostB, "192.0.2.2"), own)).Commit())
		}},
		{"another's lease deleted", "stands there", func() error { return err2(b.Delete(ctx, ofA)) }},
		{"all leases deleted", "no range", func() error { return err2(b.Delete(ctx, subnets, clientv3.WithPrefix())) }},
		{"another's lease deleted in a transaction in a transaction", "stands there",
			func() error { return err2(b.Txn(ctx).Then(forThen(forThen(clientv3.OpDelete(ofA)))).Commit()) }},
		{"another's etcd lease revoked", fmt.Sprintf("may not use lease %x", r.leaseA), func() error { return err2(b.Revoke(ctx, r.leaseA)) }},
		{"another's etcd lease renewed", "may not use lease", func() error { return err2(b.KeepAliveOnce(ctx, r.leaseA)) }},
		{"a key put under another's etcd lease", "may not use lease",
			func() error { return err2(b.Put(ctx, free, value(hostB, "192.0.2.2"), clientv3.WithLease(r.leaseA))) }},
		{"a forged host id", `names host id "aaaa"`, func() error { return err2(b.Put(ctx, free, value(hostA, "192.0.2.2"), own)) }},
		{"no host id", `names host id ""`, func() error { return err2(b.Put(ctx, free, value("", "192.0.2.2"), own)) }},
		{"the public IP of another", "its certificate names [192.0.2.2]", func() error { return err2(b.Put(ctx, free, value(hostB, "192.0.2.1"), own)) }},
		{"an enrolled host's id with an older certificate", `names host id "aaaa"`, func() error { return err2(r.old.Put(ctx, free, value(hostA, "192.0.2.3"))) }},
		{"another's address with an older certificate", "issue it for the address", func() error { return err2(r.old.Put(ctx, free, value("x", "192.0.2.1"))) }},
		{"another's lease with an older certificate", "stands there", func() error { return err2(r.old.Delete(ctx, ofA)) }},
		{"a peer outside taken by who is nobody in particular", `the peer "laptop" outside the network stands there`,
			func() error { return err2(r.old.Put(ctx, subnets+"10.5.3.0-24", value("", "192.0.2.3"))) }},
		{"a peer outside taken from its address", `the peer "laptop" outside the network at 192.0.2.3 stands there`,
			func() error { return err2(r.old.Delete(ctx, subnets+"10.5.4.0-24")) }},
		{"a peer outside let in", "its certificate names", func() error { return err2(r.old.Put(ctx, free, outside("0.0.0.0"))) }},
		{"a peer outside let in by a host", `names host id ""`, func() error { return err2(b.Put(ctx, free, outside("192.0.2.2"))) }},
		{"a lease that never ends", "never end", func() error { return err2(b.Put(ctx, free, value(hostB, "192.0.2.2"))) }},
		{"a value that is no lease", "not a JSON object", func() error { return err2(b.Put(ctx, free, "junk", own)) }},
		{"a key that is no subnet", "lease key", func() error { return err2(b.Put(ctx, subnets+"x", value(hostB, "192.0.2.2"), own)) }},
		{"another's endpoint", `it is of host id "aaaa"`, func() error { return err2(b.Put(ctx, endpointsKey+"default/aaaa/10.5.2.9", endpoint("10.5.2.9"), own)) }},
		{"another's endpoint overwritten", `it is of host id "aaaa"`, func() error { return err2(b.Put(ctx, endpointsKey+"default/aaaa/10.5.1.9", endpoint("10.5.1.9"), own)) }},
		{"another's endpoint deleted", "an endpoint of host aaaa stands there", func() error { return err2(b.Delete(ctx, endpointsKey+"default/aaaa/10.5.1.9")) }},
		{"all endpoints deleted", "no range", func() error { return err2(b.Delete(ctx, endpointsKey, clientv3.WithPrefix())) }},
		{"an endpoint with another's address", "10.5.1.9 is not in [10.5.2.0/24]",
			func() error { return err2(b.Put(ctx, endpointsKey+"default/bbbb/10.5.1.9", endpoint("10.5.1.9"), own)) }},
		{"an endpoint with another's address besides", "10.5.1.9 is not in [10.5.2.0/24]",
			func() error {
				return err2(b.Put(ctx, endpointsKey+"default/bbbb/10.5.2.9", endpoint("10.5.2.9", "10.5.1.9"), own))
			}},
		{"an endpoint with an address of nobody's", "192.0.2.9 is not in",
			func() error {
				return err2(b.Put(ctx, endpointsKey+"default/bbbb/192.0.2.9", endpoint("192.0.2.9"), own))
			}},
		{"an endpoint on another's lease", "may not use lease",
			func() error {
				return err2(b.Put(ctx, endpointsKey+"default/bbbb/10.5.2.9", endpoint("10.5.2.9"), clientv3.WithLease(r.leaseA)))
			}},
		{"an endpoint that never ends", "would never end", func() error { return err2(b.Put(ctx, endpointsKey+"default/bbbb/10.5.2.9", endpoint("10.5.2.9"))) }},
		{"an endpoint whose key says another address", "its first address is 10.5.2.8",
			func() error { return err2(b.Put(ctx, endpointsKey+"default/bbbb/10.5.2.9", endpoint("10.5.2.8"), own)) }},
		{"an endpoint in no namespace", "an endpoint's key is", func() error { return err2(b.Put(ctx, endpointsKey+"/bbbb/10.5.2.9", endpoint("10.5.2.9"), own)) }},
		{"an endpoint in a namespace with a slash", "an endpoint's key is",
			func() error { return err2(b.Put(ctx, endpointsKey+"a/b/bbbb/10.5.2.9", endpoint("10.5.2.9"), own)) }},
		{"an endpoint that is junk", "invalid character", func() error { return err2(b.Put(ctx, endpointsKey+"default/bbbb/10.5.2.9", "junk", own)) }},
		{"an enrolled host's endpoint with an older certificate", `it is of host id "aaaa"`,
			func() error { return err2(r.old.Put(ctx, endpointsKey+"default/aaaa/10.5.1.9", endpoint("10.5.1.9"))) }},
		{"a policy written", "only operators may", func() error { return err2(b.Put(ctx, testPrefix+"/overlayd/policy/default/x", "{}")) }},
		{"a policy deleted", "only operators may", func() error { return err2(b.Delete(ctx, testPrefix+"/overlayd/policy/default/deny")) }},
		{"the policies' index written", "only operators may", func() error { return err2(b.Put(ctx, testPrefix+"/overlayd/policy-index", "{}")) }},
		{"the default of policies written", "only operators may",
			func() error { return err2(b.Put(ctx, testPrefix+"/overlayd/policy-default", `{"default":"allow"}`)) }},
		{"a namespace labelled", "only operators may", func() error { return err2(b.Put(ctx, testPrefix+"/overlayd/namespaces/default", "{}")) }},
		{"the config changed", "only operators may", func() error { return err2(b.Put(ctx, testPrefix+"/config", `{"Network":"10.6.0.0/16"}`)) }},
		{"the config deleted", "only operators may", func() error { return err2(b.Delete(ctx, testPrefix+"/config")) }},
		{"itself admitted", "only operators may", func() error { return err2(b.Put(ctx, hosts+"cccc", "{}")) }},
		{"another removed", "only operators may", func() error { return err2(b.Delete(ctx, hosts+hostA)) }},
		{"a key outside the network", "only operators may", func() error { return err2(b.Put(ctx, "/other", "ours")) }},
		{"a token read", "may not read", func() error { return err2(b.Get(ctx, tokens+"t")) }},
		{"tokens read by a range", "may not read", func() error { return err2(b.Get(ctx, testPrefix+"/", clientv3.WithPrefix())) }},
		{"everything read", "may not read", func() error { return err2(b.Get(ctx, "", clientv3.WithFromKey())) }},
		{"everything from the network on read", "may not read", func() error { return err2(b.Get(ctx, testPrefix+"/", clientv3.WithFromKey())) }},
		{"everything from the network on read in a transaction", "may not read",
			func() error {
				return err2(b.Txn(ctx).Then(forThen(clientv3.OpGet(subnets, clientv3.WithFromKey()))).Commit())
			}},
		{"everything from the network on watched", "may not read",
			func() error {
				return watchErr(b.Watch(ctx, testPrefix+"/", clientv3.WithFromKey(), clientv3.WithRev(1)))
			}},
		{"tokens guessed by comparing a range", "may not read", func() error {
			return err2(b.Txn(ctx).If(clientv3.Compare(clientv3.Value(testPrefix+"/p"), "<", "m").WithRange("\x00")).Commit())
		}},
		{"a token read in a transaction", "may not read", func() error { return err2(b.Txn(ctx).Then(forThen(clientv3.OpGet(tokens + "t"))).Commit()) }},
		{"a token guessed by comparing", "may not read",
			func() error {
				return err2(b.Txn(ctx).If(clientv3.Compare(clientv3.Value(tokens+"t"), "<", "m")).Commit())
			}},
		{"tokens watched", "may not read", func() error { return watchErr(b.Watch(ctx, testPrefix+"/", clientv3.WithPrefix())) }},
		{"keys of all leases of etcd", "may not call", func() error { return err2(b.Leases(ctx)) }},
		{"a TTL of three hundred years", "at most 31622400", func() error { return err2(b.Grant(ctx, 9_000_000_000)) }},
		{"a lease's number chosen", "may not choose", func() error {
			return err2(pb.NewLeaseClient(b.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 7, TTL: 60}))
		}},
		{"MemberAdd", "may not call etcdserverpb.Cluster/MemberAdd", func() error { return err2(b.MemberAdd(ctx, []string{"http://192.0.2.66:2380"})) }},
		{"MemberRemove", "may not call", func() error { return err2(b.MemberRemove(ctx, 1)) }},
		{"AuthEnable", "may not call", func() error { return err2(b.AuthEnable(ctx)) }},
		{"UserAdd", "may not call", func() error { return err2(b.UserAdd(ctx, "root", "x")) }},
		{"Compact", "may not call", func() error { return err2(b.Compact(ctx, 2)) }},
		{"Snapshot", "may not call", func() error {
			s, err := b.Snapshot(ctx)
			if err == nil {
				_, err = io.ReadAll(s)
			}
			return err
		}},
		{"Defragment", "may not call", func() error { return err2(maintenance.Defragment(ctx, &pb.DefragmentRequest{})) }},
		{"Alarm", "may not call", func() error {
			return err2(maintenance.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}))
		}},
		{"MoveLeader", "may not call", func() error { return err2(maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 1})) }},
		{"a host that never joined", "never joined", func() error {
			return err2(r.as(r.ca, template("c", "overlayd:host/"+"cccc", "192.0.2.9")).Get(ctx, testPrefix+"/config"))
		}},
		{"a certificate of two hosts", "makes no sense", func() error {
			return err2(r.as(r.ca, template("c", "overlayd:host/"+hostA, "overlayd:host/"+hostB)).Get(ctx, testPrefix+"/config"))
		}},
	}
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			err := a.try()
			if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), a.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v; want a refusal in a line with %q", err, a.want)
			}
		})
	}
	strangers := map[string]*clientv3.Client{
		"no certificate":              r.as(nil, nil),
		"a certificate of another CA": r.as(newAuthority(t), template("operator", "overlayd:operator")),
		"plaintext":                   r.client(strings.Replace(r.server.Endpoint(), "https", "http", 1), nil),
	}
	for name, c := range strangers {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			if got, err := c.Get(ctx, testPrefix+"/config"); err == nil {
				t.Errorf("let in: %v", got)
			}
		})
	}
	after, err := r.operator.Get(ctx, "", clientv3.WithPrefix())
	if err != nil || after.Header.Revision != before.Header.Revision {
		t.Errorf("something was written: revision %d, was %d; %v", after.Header.Revision, before.Header.Revision, err)
	}
	counted, err := r.counted.Gather()
	if err != nil || len(counted) != 1 || counted[0].GetName() != "overlayd_etcd_refusals_total" {
		t.Fatalf("counted: %v, %v", counted, err)
	}
	var refused float64
	for _, m := range counted[0].GetMetric() {
		if refused += m.GetCounter().GetValue(); m.GetCounter().GetValue() == 0 {
			t.Errorf("none is counted of %v", m.GetLabel())
		}
	}
	if want := len(attacks); refused != float64(want) {
		t.Errorf("%g refusals are counted of %d", refused, want)
	}
}

func watchErr(w clientv3.WatchChan) error {
	for got := range w {
		if err := got.Err(); err != nil {
			return err
		}
	}
	return nil
}

// TestAttackRemovedHost removes a host: its requests are refused at once, its open watch and renewals end at once, and
// neither does a request get through that was judged before.
func TestAttackRemovedHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	watch := r.b.Watch(ctx, subnets, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if got := <-watch; !got.Created {
		t.Fatal(got)
	}
	renewals, err := pb.NewLeaseClient(r.b.ActiveConnection()).LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := renewals.Send(&pb.LeaseKeepAliveRequest{ID: int64(r.leaseB)}); err != nil {
		t.Fatal(err)
	}
	if _, err := renewals.Recv(); err != nil {
		t.Fatal(err)
	}
	judged := judge{gate: r.server.gate, ctx: ctx, caller: caller{Who: who.Who{Host: hostB}}}
	if _, err := r.operator.Delete(ctx, hosts+hostB); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-watch:
		if err := got.Err(); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "removed from the network") {
			t.Errorf("the watch says %v", got)
		}
	case <-time.After(5 * time.Second):
		t.Error("the watch goes on")
	}
	if got, err := renewals.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the renewals say %v, %v", got, err)
	}
	if _, err := r.b.Get(ctx, testPrefix+"/config"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a request: %v", err)
	}
	late, err := r.server.etcd.Server.Txn(ctx, &pb.TxnRequest{Compare: judged.same()})
	if err != nil || late.Succeeded {
		t.Errorf("one that was judged before: %v, %v", late, err)
	}
	if _, err := r.operator.Put(ctx, hosts+hostB, "{}"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "comes back", func() error { _, err := r.b.Get(ctx, testPrefix+"/config"); return err })
}

// TestAttackEndedCertificate ends the stream of a certificate that ends while it is open.
func TestAttackEndedCertificate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.asFor(r.ca, template("b", "overlayd:host/"+hostB, "192.0.2.2"), 2*time.Second)
	watch := c.Watch(t.Context(), subnets, clientv3.WithPrefix())
	if err := watchErr(watch); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "certificate has ended") {
		t.Errorf("the watch says %v", err)
	}
	if _, err := c.Get(t.Context(), testPrefix+"/config"); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "its certificate ended at") {
		t.Errorf("a request: %v", err)
	}
}

// TestAttackRace has a host put, and compare nothing, where another claims at the same moment: what is judged is what is changed,
// so that one of the two has the subnet, and the other is refused.
func TestAttackRace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i := range 200 {
		key := fmt.Sprintf("%s10.5.%d.0-24", subnets, 30+i)
		var errs [2]error
		var both sync.WaitGroup
		both.Go(func() {
			_, errs[0] = r.a.Put(t.Context(), key, value(hostA, "192.0.2.1"), clientv3.WithLease(r.leaseA))
		})
		both.Go(func() {
			_, errs[1] = r.b.Put(t.Context(), key, value(hostB, "192.0.2.2"), clientv3.WithLease(r.leaseB))
		})
		both.Wait()
		got, err := r.operator.Get(t.Context(), key)
		if err != nil || len(got.Kvs) != 1 || got.Kvs[0].Version != 1 || (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("%s: %v, %v; the two heard %v", key, got, err, errs)
		}
	}
}

// TestAttackSameAddress has a host that joined from the address of another, as behind one NAT, take that one's lease: it may
// once the other is removed.
func TestAttackSameAddress(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const ofA = subnets + "10.5.1.0-24"
	if _, err := r.operator.Put(t.Context(), hosts+"dddd", "{}"); err != nil {
		t.Fatal(err)
	}
	d := r.as(r.ca, template("d", "overlayd:host/dddd", "192.0.2.1"))
	eventually(t, "d is in", func() error { _, err := d.Get(t.Context(), testPrefix+"/config"); return err })
	if _, err := d.Delete(t.Context(), ofA); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "stands there") {
		t.Errorf("delete: %v", err)
	}
	if _, err := d.Revoke(t.Context(), r.leaseA); status.Code(err) != codes.PermissionDenied {
		t.Errorf("revoke: %v", err)
	}
	if _, err := r.operator.Delete(t.Context(), hosts+hostA); err != nil {
		t.Fatal(err)
	}
	eventually(t, "d takes what is nobody's", func() error { _, err := d.Delete(t.Context(), ofA); return err })
}
