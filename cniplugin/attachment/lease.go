package attachment

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/subnet"
)

// refusedName is a file beside subnet.env which overlayd writes while another host holds this host's subnet: one
// line with the reason. Containers that run go on, new ones would get addresses that lead elsewhere.
const refusedName = "subnet.refused"

// ReadLease returns what subnet.env says, or why no container can be attached now. The error's code is
// "try again later": the runtime's next try may find the daemon ready.
func ReadLease(subnetFile string) (subnet.Env, error) {
	if reason, refused := readRefusal(subnetFile); refused {
		return subnet.Env{}, failf(types.ErrTryAgainLater, "overlayd takes no new containers: %s", reason)
	}
	env, err := subnet.ReadEnv(subnetFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return subnet.Env{}, failf(types.ErrTryAgainLater,
			"subnet.env: %s does not exist: is overlayd running? (systemctl status overlayd)", subnetFile)
	case err != nil:
		return subnet.Env{}, failf(types.ErrTryAgainLater,
			"subnet.env: %v: overlayd writes it anew when restarted (systemctl restart overlayd)", err)
	case len(env.Networks) == 0 || len(env.Subnets) == 0:
		return subnet.Env{}, failf(types.ErrTryAgainLater,
			"subnet.env: %s has no FLANNEL_NETWORK or no FLANNEL_SUBNET: overlayd writes it anew when restarted "+
				"(systemctl restart overlayd)", subnetFile)
	}
	return env, nil
}

func readRefusal(subnetFile string) (reason string, refused bool) {
	data, err := subnet.ReadFile(filepath.Join(filepath.Dir(subnetFile), refusedName))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false
	}
	if err != nil { // what it says is unknown, but not that it is there
		return err.Error(), true
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	if reason = strings.TrimSpace(string(line)); reason == "" {
		reason = "it gave no reason"
	}
	return reason, true
}

// GroupOf is the group of whoever writes subnet.env, the daemon, which may read the attachments too; 0 where there is no such file.
func GroupOf(subnetFile string) uint32 {
	info, err := os.Stat(subnetFile)
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Gid
}
