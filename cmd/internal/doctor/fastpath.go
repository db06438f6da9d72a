package doctor

import (
	"context"

	"github.com/overlayd/overlayd/cmd/internal/api"
)

// fastPath tells which way packets go. That they go the slow one needs nobody's attention, unless somebody wants the other.
func fastPath(_ context.Context, h *Host) Finding {
	if h.Status == nil {
		return noDaemon()
	}
	switch f := h.Status.FastPath; {
	case f.Mode == "":
		return skip("the daemon is of before there was one")
	case f.Off != "" && f.Mode == api.FastPathOn:
		return warn("off: "+f.Off, "where it cannot be: fast-path: auto in /etc/overlayd/overlayd.yaml, and systemctl reload overlayd; docs/fast-path.md says what it needs")
	case f.Off != "":
		return ok("off: %s", f.Off)
	default:
		return ok("on, %d subnets of peers, %d containers, %d of their addresses slow", f.Peers, f.Containers, len(f.Slow))
	}
}
