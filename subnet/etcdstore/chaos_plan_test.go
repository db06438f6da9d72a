package etcdstore

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// chaosHosts is how many hosts live through the chaos.
const chaosHosts = 30

// fault is something that goes wrong, or is mended.
type fault struct {
	at   time.Duration // since the start
	kind string
	host int    // whom it concerns, if anybody
	n    uint64 // what else is left to chance
}

func (f fault) String() string {
	return fmt.Sprintf("%6.2fs %s host %d, %d", f.at.Seconds(), f.kind, f.host, f.n%1000)
}

// faultKind is a kind of fault. One that ends is mended by the kind that it names, some time later.
type faultKind struct {
	kind   string
	weight int
	end    string
	most   time.Duration // until it is mended
}

// faultKinds are all that there are.
var faultKinds = []faultKind{
	{"kill", 16, "start", 4 * time.Second},
	{"forget", 4, "start", 2 * time.Second}, // killed, and the state directory has another idea of the past
	{"refuse", 8, "heal", 6 * time.Second},
	{"swallow", 6, "heal", 8 * time.Second},
	{"pause", 8, "heal", 8 * time.Second},
	{"move", 8, "", 0},
	{"delete", 8, "", 0},
	{"revoke", 6, "", 0},
	{"junk", 6, "", 0},
	{"flannel", 4, "", 0},
	{"usurp", 6, "", 0},
	{"garbage", 8, "", 0},
	{"reserve", 3, "", 0},
	{"config", 3, "", 0},
	{"family", 4, "", 0},
	{"clone", 6, "", 0},
	{"compact", 4, "", 0},
	{"backup", 2, "", 0},
	{"restore", 2, "", 0},
	{"restart", 1, "", 0},
}

// planChaos decides what goes wrong when, by the seed alone. The last fault is mended at the end.
func planChaos(seed uint64, length time.Duration) []fault {
	r := rand.New(rand.NewPCG(seed, 0))
	total := 0
	for _, k := range faultKinds {
		total += k.weight
	}
	var all []fault
	busy := make(map[int]time.Duration) // until when a host has a fault that is to be mended
	for at := time.Second; at < length; at += 50*time.Millisecond + time.Duration(r.Int64N(int64(300*time.Millisecond))) {
		pick := r.IntN(total)
		k := faultKinds[slices.IndexFunc(faultKinds, func(k faultKind) bool {
			pick -= k.weight
			return pick < 0
		})]
		f := fault{at, k.kind, r.IntN(chaosHosts), r.Uint64()}
		if k.end == "" {
			all = append(all, f)
			continue
		}
		until := min(length, at+time.Duration(r.Int64N(int64(k.most))))
		if at >= busy[f.host] {
			busy[f.host] = until + 1
			all = append(all, f, fault{until, k.end, f.host, f.n})
		}
	}
	slices.SortStableFunc(all, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return all
}
