package bypass

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// judgeRules tells which rule of routing is for what is fast. Those of every host lead to the tables that routes of ours are in.
func judgeRules(rules []netlink.Rule, o Ours, isContainer func(link string) bool) string {
	for _, r := range rules {
		standard := r.Table == unix.RT_TABLE_LOCAL || r.Table == unix.RT_TABLE_MAIN || r.Table == unix.RT_TABLE_DEFAULT
		if standard && r.SuppressPrefixlen < 0 && r.SuppressIfgroup < 0 && r.Goto < 0 {
			continue
		}
		for _, p := range o.flows() {
			if slices.Contains(p.out, "") {
				continue // what comes for this host is found before
			}
			if concerns(r, p, isContainer) {
				return fmt.Sprintf("%s routes packets %s", ruleText(r), p.what)
			}
		}
	}
	return ""
}

func concerns(r netlink.Rule, p packets, isContainer func(string) bool) bool {
	if p.v6 != (r.Family == unix.AF_INET6) {
		return false
	}
	if r.Invert {
		return true // of several conditions, whoever does not meet them all
	}
	var tests []test
	if r.Mark != 0 {
		tests = append(tests, none) // packets of ours have none, but from rules that are found by themselves
	}
	switch r.IifName {
	case "":
	case "lo": // what is made here
		tests = append(tests, byLink(true, []string{""}, false))
	default:
		tests = append(tests, byLink(true, []string{r.IifName}, false))
	}
	if r.OifName != "" {
		tests = append(tests, byLink(false, []string{r.OifName}, false))
	}
	for i, n := range []*net.IPNet{r.Src, r.Dst} {
		if prefix := prefixOf(n); prefix.IsValid() {
			tests = append(tests, byAddress(i == 0, []netip.Prefix{prefix}, false))
		}
	}
	if r.IPProto != 0 {
		tests = append(tests, byProtocol([]string{fmt.Sprint(r.IPProto)}, false))
	}
	_, f := meet(tests, p, isContainer)
	return f != never
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	if a.Is4In6() {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// ruleText is a rule as ip prints it.
func ruleText(r netlink.Rule) string {
	text := fmt.Sprintf("ip rule %d:", max(0, r.Priority))
	if r.Invert {
		text += " not"
	}
	text += " from " + orAll(r.Src)
	if r.Dst != nil {
		text += " to " + orAll(r.Dst)
	}
	for _, more := range [][2]string{{"iif", r.IifName}, {"oif", r.OifName}} {
		if more[1] != "" {
			text += " " + more[0] + " " + more[1]
		}
	}
	if r.Mark != 0 {
		text += fmt.Sprintf(" fwmark %#x", r.Mark)
	}
	if r.Table != 0 {
		text += fmt.Sprint(" lookup ", r.Table)
	}
	return text
}

func orAll(n *net.IPNet) string {
	if p := prefixOf(n); p.IsValid() {
		return p.String()
	}
	return "all"
}

// judgePolicies tells which IPsec policy takes what is fast. Those of a socket are for what that sends.
func judgePolicies(policies []netlink.XfrmPolicy, o Ours) string {
	for _, x := range policies {
		if x.Dir > netlink.XFRM_DIR_FWD || x.Ifid != 0 {
			continue
		}
		from, to := prefixOf(x.Src), prefixOf(x.Dst)
		for _, p := range o.flows() {
			tests := []test{byFamily(from.Addr().Is6())}
			if from.IsValid() && to.IsValid() {
				tests = append(tests, byAddress(true, []netip.Prefix{from}, false), byAddress(false, []netip.Prefix{to}, false))
			}
			if x.Proto != 0 {
				tests = append(tests, byProtocol([]string{fmt.Sprint(int(x.Proto))}, false))
			}
			if _, f := meet(tests, p, nil); f != never {
				return fmt.Sprintf("ip xfrm policy src %s dst %s %s takes packets %s", orAll(x.Src), orAll(x.Dst), x.Dir, p.what)
			}
		}
	}
	return ""
}

// judgeIPVS tells whether the host balances loads, given its services as the kernel lists them: answers of containers to whom
// others were led belong to it.
func judgeIPVS(services string) string {
	for line := range strings.Lines(services) {
		words := strings.Fields(line)
		if len(words) > 1 && strings.Contains("TCP UDP SCTP FWM", words[0]) {
			return fmt.Sprintf("IPVS has a service (%s %s): packets of its servers are its", words[0], words[1])
		}
	}
	return ""
}
