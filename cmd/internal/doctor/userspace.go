package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/overlayd/overlayd/backend/userspace"
)

// UserSpace is what the process says that serves links which the kernel cannot make.
type UserSpace struct {
	Answer userspace.Answer // without a version: there is no process
	Err    error            // why it does not answer
	Latest string           // version of what is installed
}

// userSpace looks at the process that serves links which the kernel cannot make.
func userSpace(_ context.Context, h *Host) Finding {
	u := h.UserSpace
	var links []string
	for _, l := range u.Answer.WireGuard {
		links = append(links, l.Name)
	}
	for _, l := range u.Answer.UDP {
		links = append(links, l.Name)
	}
	switch {
	case u.Err != nil:
		return warn(u.Err.Error(), "journalctl -u overlayd-tun, or tun.log in the run directory; where packets of its links are lost: systemctl restart overlayd-tun")
	case u.Answer.Version == "" || len(links) == 0:
		return skip("no process carries packets")
	case u.Answer.Version != u.Latest:
		return warn(fmt.Sprintf("overlayd-tun, which carries %s, is of version %s, and not %s as overlayctl", strings.Join(links, " and "), u.Answer.Version, u.Latest),
			"systemctl restart overlayd-tun, when packets of a second may be lost")
	}
	return ok("overlayd-tun carries %s, where the kernel has not what it takes: it is slower, and has %d MB of memory", strings.Join(links, " and "), u.Answer.Resident>>20)
}
