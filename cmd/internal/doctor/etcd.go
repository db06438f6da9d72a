package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/who"
)

const (
	// slow is what etcd takes on a disk or a network that is too slow for it: its own warning is at 100 ms for each of
	// the requests of a listing.
	slow = 500 * time.Millisecond
	// renewEarly is when a certificate should be renewed.
	renewEarly = 30 * 24 * time.Hour
)

// etcd asks whether etcd answers, and has a network.
func etcd(_ context.Context, h *Host) Finding {
	switch {
	case errors.Is(h.EtcdErr, etcdstore.ErrNoNetwork):
		return fail("it has "+h.EtcdErr.Error(), "overlayctl network set 10.244.0.0/16, or a range that is free at your place")
	case errors.Is(h.EtcdErr, context.DeadlineExceeded):
		return fail(h.EtcdErr.Error(), "do etcd-endpoints name it, does a firewall let TCP 2379 through? Containers' traffic goes on meanwhile")
	case h.EtcdErr != nil: // it says what to do
		return fail(h.EtcdErr.Error(), "containers' traffic goes on meanwhile")
	case h.EtcdTook > slow:
		return warn(fmt.Sprintf("it takes %s to list the leases", h.EtcdTook.Round(time.Millisecond)),
			"give etcd a faster disk, or look at the way to it")
	}
	return ok("answers in %s, revision %d", h.EtcdTook.Round(time.Millisecond), h.Listing.Revision)
}

// access looks at who can write to etcd: who can, gives any subnet to any host.
func access(_ context.Context, h *Host) Finding {
	const close = `let "overlayctl init" and "overlayctl join" make certificates, or see docs/real-hosts.md`
	plain := slices.DeleteFunc(slices.Clone(h.EtcdURLs), func(u string) bool { return !strings.HasPrefix(u, "http:") })
	if h.Insecure != "" {
		plain = append(plain, "http://"+strings.TrimPrefix(h.Insecure, "http://"))
	}
	var open []string
	for _, u := range plain {
		at, err := netip.ParseAddrPort(strings.TrimPrefix(u, "http://"))
		if local := err == nil && at.Addr().IsLoopback() || strings.HasPrefix(u, "http://localhost:"); !local {
			open = append(open, u)
		}
	}
	switch {
	case len(open) > 0:
		return fail("in the clear at "+list(open)+": who reaches that, or is on the way there, can take any subnet", close)
	case len(plain) > 0 && h.EtcdOpen:
		return warn("every user of this host can take any subnet, by "+list(plain), close)
	case len(plain) > 0:
		return ok("asked on this host alone")
	case h.EtcdErr != nil:
		return skip("not known: etcd does not answer")
	case len(h.EtcdURLs) > 0 && strings.HasPrefix(h.EtcdURLs[0], "unix:"):
		return ok("by a unix socket, which its user and root alone may use")
	}
	if h.EtcdOpen && !operator(h.CertFile) {
		return warn("etcd lets this host do what no host may: read, and change, what is another's",
			"give it roles: overlayctl network roles; the etcd in overlayd needs none")
	}
	return ok("encrypted, and each host has its own rights")
}

// operator says whether a certificate is an operator's.
func operator(file string) bool {
	c, err := certs.Read(file)
	if err != nil {
		return false
	}
	w, err := who.Parse(c)
	return err == nil && w.Operator
}

// certificate looks at the certificate that this host shows to etcd.
func certificate(_ context.Context, h *Host) Finding {
	if h.CertFile == "" {
		return skip("etcd-certfile is not set")
	}
	c, err := certs.Read(h.CertFile)
	if err != nil {
		return fail(err.Error(), "etcd-certfile must name a readable certificate")
	}
	left, early := c.NotAfter.Sub(h.Now), renewEarly
	advice := "make a new one, where the CA is: overlayctl certs renew DIR NAME, and copy it to " + h.CertFile
	if w, err := who.Parse(c); err == nil && w.Host != "" { // the daemon renews it at two thirds
		early = c.NotAfter.Sub(c.NotBefore) / 6
		advice = "overlayd renews it, and its log says why it cannot; one that has ended: overlayctl join ADDRESS --token TOKEN, as at first"
	}
	switch end := c.NotAfter.UTC().Format(time.DateOnly); {
	case h.Now.Before(c.NotBefore):
		return fail(fmt.Sprintf("%s begins to be valid %s", h.CertFile, c.NotBefore.UTC().Format(time.RFC3339)), "is this host's clock right?")
	case left <= 0:
		return fail(fmt.Sprintf("%s has ended on %s", h.CertFile, end), advice)
	case left < early:
		return warn(fmt.Sprintf("%s ends on %s", h.CertFile, end), advice)
	default:
		return ok("valid until %s", end)
	}
}

// clock asks the kernel whether somebody sets the clock. How far it is off cannot be known: etcd does not tell its
// own. Leases do not depend on it, because etcd counts their time; certificates do, and so does who reads logs.
func clock(context.Context, *Host) Finding {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return unknown(err)
	}
	return judgeClock(t.Status)
}

func judgeClock(status int32) Finding {
	if status&unix.STA_UNSYNC != 0 {
		return warn("the kernel knows of nobody who sets it", "run chrony or systemd-timesyncd; certificates and logs depend on it, leases do not")
	}
	return ok("synchronised")
}

// duplicates tells of what only one host can have, and leases of several name.
func duplicates(records []subnet.Record) []string {
	holders := map[string][]subnet.Record{}
	note := func(kind, value string, r subnet.Record) {
		key := kind + " " + value
		// Leases of one host are told of elsewhere; the links of its two families may have one MAC.
		same := func(o subnet.Record) bool { return o.Key() == r.Key() || o.HostID != "" && o.HostID == r.HostID }
		if value != "" && !slices.ContainsFunc(holders[key], same) {
			holders[key] = append(holders[key], r)
		}
	}
	for _, r := range records {
		for _, e := range r.Endpoints {
			var data struct {
				VtepMAC, PublicKey string
				NAT                bool
			}
			err := json.Unmarshal(e.Data, &data)
			if e.PublicIP.IsValid() && !r.Outside() && !data.NAT { // several may be behind one
				note("address", e.PublicIP.String(), r)
			}
			if err == nil {
				note("VTEP MAC", strings.ToLower(data.VtepMAC), r)
				note("wireguard key", data.PublicKey, r)
			}
		}
	}
	return several(holders)
}

// surplus tells of hosts that have several leases: of one that is to be moved, or was.
func surplus(records []subnet.Record) []string {
	holders := map[string][]subnet.Record{}
	for _, r := range records {
		if r.HostID != "" {
			holders["host id "+r.HostID] = append(holders["host id "+r.HostID], r)
		}
	}
	return several(holders)
}

func several(holders map[string][]subnet.Record) (lines []string) {
	for _, key := range slices.Sorted(maps.Keys(holders)) {
		if records := holders[key]; len(records) > 1 {
			var who []string
			for _, r := range records {
				who = append(who, r.Key())
			}
			lines = append(lines, fmt.Sprintf("%s is in %d leases: %s", key, len(who), strings.Join(who, ", ")))
		}
	}
	return lines
}
