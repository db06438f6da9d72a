package doctor

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/overlayd/overlayd/cmd/internal/api"
)

// manyPeers are more than a process should have that carries wireguard.
const manyPeers = 2000

// wireGuard looks at the key, the ports, and whether peers have ever shaken hands.
func wireGuard(_ context.Context, h *Host) Finding {
	if h.Status == nil {
		return noDaemon()
	}
	wg := h.Status.WireGuard
	for _, f := range h.Status.Kernel.Failed {
		if strings.Contains(f, "type wireguard") && strings.Contains(f, " is taken ") {
			return fail(f, "end what has the port, or give the network another: ListenPort in its Backend")
		}
	}
	if wg == nil {
		return skip("this host has no wireguard link")
	}
	if info, err := os.Stat(wg.KeyFile); err == nil && info.Mode().Perm()&0o077 != 0 {
		return fail(fmt.Sprintf("others may read the private key: %s has mode %04o", wg.KeyFile, info.Mode().Perm()),
			fmt.Sprintf("chmod 600 %s; and, as it may have been read: overlayctl wireguard rotate", wg.KeyFile))
	}
	var mute []string
	up := 0
	for _, p := range wg.Peers {
		switch {
		case p.Up(h.Now):
			up++
		case p.Mute():
			mute = append(mute, fmt.Sprintf("%s (%s)", wireGuardName(p), p.Endpoint))
		}
	}
	if len(mute) > 0 {
		return fail("packets went to them, and they never shook hands: "+list(mute), fmt.Sprintf(
			"let UDP %s through in both directions, on every firewall between the hosts; does overlayctl wireguard there show this host's key, %s?",
			ports(wg), wg.PublicKey))
	}
	for _, l := range wg.Links {
		if !l.UserSpace {
			continue
		}
		cost := fmt.Sprintf("the kernel has no module wireguard: a process carries %s, which is slower and takes %d MB for %d peers",
			l.Name, len(wg.Peers)*api.WireGuardProcessPeer>>20, len(wg.Peers))
		if len(wg.Peers) > manyPeers {
			return warn(cost, "install the kernel's modules (linux-modules-extra, kernel-modules-core), and delete the link: the kernel makes it anew")
		}
		return ok("%d peers, %d up; %s", len(wg.Peers), up, cost)
	}
	return ok("%d peers, %d up, in the kernel", len(wg.Peers), up)
}

func wireGuardName(p api.WireGuardPeer) string {
	if p.Host != "" {
		return p.Host
	}
	return strings.Join(p.Subnets, ",")
}

// ports are those by which the host hears its peers.
func ports(wg *api.WireGuard) string {
	var all []string
	for _, l := range wg.Links {
		all = append(all, fmt.Sprint(l.Port))
	}
	return strings.Join(all, " and ")
}
