package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// guardParts are what the guard can be of.
var guardParts = []string{"containers", "overlay", "tunnel"}

// guard asks whether forged packets are kept out, and whether there were any. Who sends them is for the operator to find out.
func guard(_ context.Context, h *Host) Finding {
	if h.Status == nil {
		return noDaemon()
	}
	g := h.Status.Guard
	var dropped []string
	for _, reason := range slices.Sorted(maps.Keys(g.Dropped)) {
		if n := g.Dropped[reason]; n > 0 {
			dropped = append(dropped, fmt.Sprintf("%d %s", n, reason))
		}
	}
	off := slices.DeleteFunc(slices.Clone(guardParts), func(part string) bool { return slices.Contains(g.Parts, part) })
	switch {
	case len(g.Parts) == 0:
		return warn("off: nothing keeps forged packets out of the overlay", "take guard out of /etc/overlayd/overlayd.yaml, and restart overlayd")
	case g.Missing != "":
		return fail(g.Missing, "apt-get install nftables; a kernel has what it takes since 5.7, with its extra modules")
	case len(off) > 0:
		return ok("without %s; dropped: %s", strings.Join(off, ", "), orNothing(dropped))
	}
	return ok("dropped: %s", orNothing(dropped))
}

func orNothing(things []string) string {
	if len(things) == 0 {
		return "nothing"
	}
	return strings.Join(things, ", ")
}
