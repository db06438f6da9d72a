package who

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	t.Parallel()
	parsed := func(text string) *url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	ips := []net.IP{net.IPv4(192, 0, 2, 1), net.IPv6loopback, net.ParseIP("2001:db8::1"), net.IPv4(127, 0, 0, 1), {1, 2, 3}}
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	for name, c := range map[string]struct {
		uris []string
		want Who // without Name: an error
	}{
		"two hosts":           {[]string{"overlayd:host/a", "overlayd:host/b"}, Who{}},
		"a host without id":   {[]string{"overlayd:host/"}, Who{}},
		"of a later version":  {[]string{"overlayd:host/a", "overlayd:pope"}, Who{}},
		"nobody":              {nil, Who{Name: "a", IPs: addrs}},
		"somebody else's URI": {[]string{"spiffe://example/a", "overlayd:host/a"}, Who{Name: "a", Host: "a", IPs: addrs}},
		"a member":            {[]string{"overlayd:member", "overlayd:host/a"}, Who{Name: "a", Host: "a", Member: true, IPs: addrs}},
		"an operator":         {[]string{"overlayd:operator"}, Who{Name: "a", Operator: true, IPs: addrs}},
	} {
		cert := &x509.Certificate{Subject: pkix.Name{CommonName: "a"}, IPAddresses: ips}
		for _, uri := range c.uris {
			cert.URIs = append(cert.URIs, parsed(uri))
		}
		got, err := Parse(cert)
		if diff := cmp.Diff(c.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || (err == nil) != (c.want.Name != "") {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if err != nil {
			continue
		}
		again, err := Parse(&x509.Certificate{Subject: cert.Subject, IPAddresses: ips, URIs: got.URIs()})
		if err != nil || again.String() != got.String() || again.Member != got.Member {
			t.Errorf("%s: what it says is read as %+v, %v", name, again, err)
		}
	}
}
