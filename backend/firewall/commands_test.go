package firewall

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCommands(t *testing.T) {
	t.Parallel()
	got := strings.Join(Commands([]Rule{Accept{net4}, Accept{net4}, Accept{net6}, Masquerade{net4}, Masquerade{net6}}), "\n")
	want := []string{
		"iptables -N OVERLAYD-FORWARD\niptables -I FORWARD 1 " + forwardJump,
		Accept{net4}.String(), Accept{net4}.String(),
		"ip6tables -N OVERLAYD-FORWARD\nip6tables -I FORWARD 1 " + forwardJump, Accept{net6}.String(),
		"nft add table inet overlayd\n" +
			"nft 'add chain inet overlayd postrouting { type nat hook postrouting priority srcnat; }'",
		"nft " + Masquerade{net4}.nft()[1], "nft " + Masquerade{net6}.nft()[1],
	}
	if diff := cmp.Diff(strings.Join(want, "\n"), got); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
	if lines := Commands(nil); len(lines) != 0 {
		t.Errorf("commands for nothing: %q", lines)
	}
}
