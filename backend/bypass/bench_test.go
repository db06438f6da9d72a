package bypass

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// crowd is a host with so many rules of iptables and containers' links, with a watcher that does not run.
func crowd(b *testing.B, restore string, rules, links int) (w *Watcher, indexes []int) {
	b.Helper()
	ns := nstest.New(b)
	nstest.Sh(b, ns, site)
	nstest.Sh(b, ns, fmt.Sprintf(`
		seq 0 %d | awk '{ print "link add veth"$1" type veth peer name inside"$1"\nlink set veth"$1" master cni0 up" }' | ip -batch - >/dev/null
		seq 1 %d | awk 'BEGIN { print "*filter" } { printf "-A FORWARD -d 172.17.%%d.%%d/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport %%d -m conntrack --ctstate NEW -j ACCEPT\n", $1/250, $1%%250, $1 } END { print "COMMIT" }' | %s`,
		links-1, rules, restore))
	w, err := New(Config{Namespace: ns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(w.close)
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	all, err := h.LinkList()
	if err != nil {
		b.Fatal(err)
	}
	o := host
	for _, l := range all {
		if strings.HasPrefix(l.Attrs().Name, "veth") {
			indexes = append(indexes, l.Attrs().Index)
		}
	}
	o.Containers = indexes
	w.Watch(o)
	return w, indexes
}

// BenchmarkLook looks at a host with 5,000 rules and 1,000 containers: at all, at one table that changed, at what is no table, at
// the links, and at one of them.
func BenchmarkLook(b *testing.B) {
	for _, restore := range []string{"iptables-nft-restore", "iptables-legacy-restore"} {
		b.Run(restore, func(b *testing.B) {
			w, indexes := crowd(b, restore, 5000, 1000)
			w.lookAtLinks()
			look := func(prepare func()) func(b *testing.B) {
				return func(b *testing.B) {
					for range b.N {
						prepare()
						w.lookAtLinks()
						if _, err := w.lookAtHost(b.Context()); err != nil {
							b.Fatal(err)
						}
						if why := w.Report().Host; why != "" {
							b.Fatal(why)
						}
					}
				}
			}
			b.Run("all", look(func() { w.lost = true; w.again() }))
			b.Run("a-table", look(func() { w.stale[rtnl.Table{Family: unix.NFPROTO_IPV4, Name: "filter"}] = true }))
			b.Run("another-table", look(func() { w.stale[rtnl.Table{Family: unix.NFPROTO_IPV4, Name: "nat"}] = true }))
			b.Run("a-link", look(func() { w.dirty[indexes[500]] = struct{}{} }))
			b.Run("watch", look(func() { w.Watch(w.ours); w.rest = false }))
			b.Run("a-container-goes-and-comes", look(func() {
				o := w.ours
				o.Containers = indexes[1:]
				w.Watch(o)
				o.Containers = indexes
				w.Watch(o)
			}))
		})
	}
}
