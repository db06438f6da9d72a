package probe

import (
	"context"
	"net/netip"
	"time"
)

// floor is the smallest packet that every IPv4 host must take (RFC 791, 3.2).
const floor = 576

// PathMTU returns for each address how large a packet of at most want bytes reaches it in one piece; 0 if none of
// 576 bytes does. It takes some ten rounds of echoes where want does not pass.
func PathMTU(ctx context.Context, addrs []netip.Addr, want int) (map[netip.Addr]int, error) {
	type span struct{ passes, fails int }
	spans := map[netip.Addr]span{}
	for _, a := range addrs {
		spans[a] = span{0, want + 1}
	}
	for {
		var targets []Target
		for a, s := range spans {
			switch {
			case s.passes == 0 && s.fails == want+1: // first what is wanted,
				targets = append(targets, Target{Addr: a, Size: want})
			case s.passes == 0 && s.fails > floor: // then what must pass if anything does
				targets = append(targets, Target{Addr: a, Size: floor})
			case s.passes > 0 && s.fails-s.passes > 1:
				targets = append(targets, Target{Addr: a, Size: (s.passes + s.fails) / 2})
			}
		}
		if len(targets) == 0 {
			break
		}
		results, err := Ping(ctx, targets, Config{Count: 3, Interval: 20 * time.Millisecond, Timeout: 500 * time.Millisecond})
		if err != nil {
			return nil, err
		}
		for _, r := range results {
			s := spans[r.Addr]
			if r.Received > 0 {
				s.passes = r.Size
			} else {
				s.fails = r.Size
			}
			spans[r.Addr] = s
		}
	}
	found := map[netip.Addr]int{}
	for a, s := range spans {
		found[a] = s.passes
	}
	return found, nil
}
