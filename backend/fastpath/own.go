package fastpath

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

// SetOwn says what the host's own end is. Before the first call nothing is fast.
func (p *Path) SetOwn(own Own) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changing = true // nothing is fast by one end to the peers of another
	ours := Claim{Owner: ownSubnets}
	p.own, p.own.Subnets = own, nil
	for _, s := range own.Subnets {
		p.own.Subnets = append(p.own.Subnets, s.Masked())
		ours.Peers = append(ours.Peers, Peer{Subnet: s})
	}
	p.claim([]Claim{ours})
	p.lookAtKernel()
	p.bringPeers(maps.Keys(p.peers)) // which ones are reached by a tunnel of ours
	p.changing = false
	p.write()
	task.Signal(p.wake)
}

// Use says why nothing may be fast (empty: it may), whether anything on this host tracks connections, and which links of
// containers must not be fast, with the reasons.
func (p *Path) Use(off string, tracked bool, links map[int]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off, p.tracked, p.links = off, tracked, maps.Clone(links)
	p.lookAtKernel()
	p.bringLocals()
	p.write()
}

// whyOff says why nothing is fast.
func (p *Path) whyOff() string {
	switch {
	case p.err != nil:
		return p.err.Error()
	case p.off != "":
		return p.off
	case p.tracked && !p.kernel.seesConnections():
		return "connections are tracked here, and the kernel does not let programs look at them (Linux 6.1 does)"
	case p.tracked && p.sysctls[2] == 0:
		return "connections are tracked here, and those that were fast would stand still after it (net.netfilter.nf_conntrack_tcp_loose is 0)"
	case len(p.lost) > 0:
		return fmt.Sprintf("%d peers cannot be told to the programs", len(p.lost))
	case p.own.Underlay == 0:
		return "there is no link that carries packets between hosts"
	case p.failed[p.own.Underlay] != nil:
		return p.failed[p.own.Underlay].Error()
	}
	return ""
}

// write brings to the kernel what holds for all packets. No packet is fast by a mixture of two ends.
func (p *Path) write() {
	want := programOwn{
		Until: p.until, Underlay: uint32(p.own.Underlay), Mtu: uint32(p.own.MTU), Hz: p.hz,
		Udp: 1000 * p.sysctls[0], Stream: 1000 * p.sysctls[1],
	}
	for _, t := range p.own.Tunnels {
		to := &want.Tunnels[0]
		if t.Addr.Is6() {
			to = &want.Tunnels[1]
			to.Link = p.overlay
		}
		to.Addr.W, to.Vni, to.Port, to.Mac = words(t.Addr), order32(t.VNI<<8), order16(t.Port), t.MAC
	}
	if p.direct > 0 {
		want.Direct = 1
	}
	if p.tracked {
		want.Tracked = 1
	}
	off := p.whyOff()
	if off == "" && !p.changing {
		want.Enabled = 1
	}
	if off != p.toldOff {
		p.toldOff = off
		task.Signal(p.changed)
	}
	if want == p.written {
		return
	}
	if had := p.written; had.Enabled == 1 && (had.Tunnels != want.Tunnels || had.Underlay != want.Underlay) {
		had.Enabled = 0
		p.put(had)
	}
	if on := want; p.written.Enabled == 0 && want.Enabled == 1 {
		on.Enabled = 0
		p.put(on)
	}
	p.put(want)
}

func (p *Path) put(o programOwn) {
	if err := p.kernel.Consts.Update(uint32(0), &o, ebpf.UpdateAny); err != nil {
		p.fail(fmt.Errorf("tell the programs the host's own end: %w", err))
		return
	}
	p.written = o
}

// fail has nothing be fast any more: what must be known to the programs is not.
func (p *Path) fail(err error) {
	if p.err != nil {
		return
	}
	p.err = err
	p.cfg.Log.Error("no fast path any more", "err", err)
	p.write()
}

// lookAtKernel finds what may change without anybody's telling: the link that IPv6's packets may have to go into, for how
// many s the kernel keeps connections of UDP without use, unanswered ones and others, and whether it takes up those of TCP.
func (p *Path) lookAtKernel() {
	for _, t := range p.own.Tunnels {
		if t.Addr.Is4() {
			continue
		}
		if p.overlay = 0; t.Link != "" {
			if l, err := p.netlink.LinkByName(t.Link); err == nil && l.Attrs().Flags&net.FlagUp != 0 {
				p.overlay = uint32(l.Attrs().Index)
			}
		}
	}
	p.sysctls = [3]uint32{30, 120, 1}
	rtnl.InNetns(p.cfg.Namespace, func() error {
		for i, name := range []string{"udp_timeout", "udp_timeout_stream", "tcp_loose"} {
			text, _ := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name) // not there before anything is tracked
			if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 20); err == nil {
				p.sysctls[i] = uint32(n)
			}
		}
		return nil
	})
}

// words are an address as the programs have it: IPv6's, or IPv4's mapped.
func words(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

// order32 and order16 are numbers of which memory has the bytes in the network's order.
func order32(v uint32) uint32 {
	return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, v))
}
func order16(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
