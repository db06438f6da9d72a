// Package doctor looks for what commonly keeps containers of different hosts from reaching each other, one thing after
// the other, and says what to do about it. It changes nothing.
//
// It is not part of overlayctl's main package because each check is tested alone, in a network namespace that is ill
// in one way.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// Level is how good a finding is.
type Level string

// The levels, from good to bad.
const (
	OK   Level = "ok"
	Skip Level = "skip" // it could not be looked at, or does not apply
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is what a check found.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Text   string `json:"text"`
	Advice string `json:"advice,omitempty"` // what to do
}

// Host is what is known of this host before the checks look for themselves.
type Host struct {
	Status    *api.Status // nil: the daemon does not answer
	StatusErr error       // why not

	Network  subnet.Network // in force, or what etcd says if the daemon is silent; without pools if nobody knows
	Listing  etcdstore.Listing
	EtcdErr  error         // nil: etcd has answered
	EtcdTook time.Duration // how long it took
	CertFile string        // shown to etcd; empty: none
	EtcdURLs []string      // where it is asked
	EtcdOpen bool          // it let this host do what no host may
	Insecure string        // address at which the embedded etcd serves without certificates; empty: none
	Now      time.Time
	Root     string // of the file system, for the kernel's modules: /

	UserSpace UserSpace
}

// check is one thing to look at. Its finding has no name yet.
type check struct {
	name string
	look func(context.Context, *Host) Finding
}

// checks are in the order in which to mend: what fails first explains much of what fails later.
var checks = []check{
	{"daemon", daemon},
	{"etcd", etcd},
	{"etcd access", access},
	{"certificate", certificate},
	{"clock", clock},
	{"leases", leases},
	{"kernel features", features},
	{"interface", underlay},
	{"ip_forward", forwarding},
	{"rp_filter", reversePath},
	{"bridge netfilter", bridgeNetfilter},
	{"guard", guard},
	{"policies", policies},
	{"fast path", fastPath},
	{"containers", containers},
	{"routes", foreignRoutes},
	{"kernel objects", drift},
	{"user space", userSpace},
	{"wireguard", wireGuard},
	{"peers", peers},
	{"MTU", pathMTU},
	{"checksums", checksums},
}

// Run makes all checks and reports each finding when it is there.
func Run(ctx context.Context, h *Host, report func(Finding)) error {
	for _, c := range checks {
		f := c.look(ctx, h)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f.Check = c.name
		report(f)
	}
	return nil
}

func ok(format string, args ...any) Finding {
	return Finding{Level: OK, Text: fmt.Sprintf(format, args...)}
}

func skip(format string, args ...any) Finding {
	return Finding{Level: Skip, Text: fmt.Sprintf(format, args...)}
}

// warn and fail take what is wrong and what to do about it.
func warn(text, advice string) Finding { return Finding{Level: Warn, Text: text, Advice: advice} }

func fail(text, advice string) Finding { return Finding{Level: Fail, Text: text, Advice: advice} }

// unknown is the finding of a check that cannot look.
func unknown(err error) Finding { return skip("not known: %v", err) }

// noDaemon is the finding of checks that need to know what the daemon does.
func noDaemon() Finding { return skip("not known without the daemon") }

// list is things in one line, not too many of them.
func list(things []string) string {
	const most = 5
	if n := len(things); n > most {
		things = append(slices.Clone(things[:most]), fmt.Sprintf("and %d more", n-most))
	}
	return strings.Join(things, "; ")
}

// peerName is how a peer is called: flannel's have no host name.
func peerName(p api.Peer) string {
	if p.Host != "" {
		return p.Host
	}
	return strings.Join(p.Subnets, ",")
}
