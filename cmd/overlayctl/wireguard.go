package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/settings"
)

// rotateTimeout is how long the daemon may take to have its turn, and another key in etcd.
const rotateTimeout = 30 * time.Second

func (a *app) wireGuardCommand() *cobra.Command {
	var watch bool
	cmd := group(&cobra.Command{
		Use:   "wireguard",
		Short: "Show this host's wireguard: keys, where peers are, how old their handshakes are; exit 1 if one never answered",
		Long: `Show the wireguard links of this host and their peers: public keys, where packets to each go, when the last handshake
was, and how many bytes went each way. A peer is up while its last handshake is younger than 275 seconds. Without traffic there is
none, and that is no fault; bytes that are sent to a peer that never shakes hands are one.`,
	}, a.wireGuardRotateCommand())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.again(cmd.Context(), watch, a.showWireGuard)
	}
	watchFlag(cmd, &watch)
	return cmd
}

func (a *app) showWireGuard(ctx context.Context) error {
	s, err := a.askDaemon(ctx)
	if err != nil {
		return err
	}
	if s.WireGuard == nil {
		return errors.New("this host has no wireguard link: the network's backend is " + s.Backend)
	}
	mute := false
	for _, p := range s.WireGuard.Peers {
		mute = mute || p.Mute()
	}
	return a.show(s.WireGuard, mute, func(w io.Writer) { a.printWireGuard(w, *s.WireGuard) })
}

// peerState is how a peer is, in a word.
func (a *app) peerState(p api.WireGuardPeer) string {
	switch {
	case p.Up(a.now()):
		return "up"
	case p.Mute():
		return "never answered"
	case p.Sent == 0 || p.Handshake == nil:
		return "idle"
	}
	return "down"
}

func (a *app) printWireGuard(w io.Writer, wg api.WireGuard) {
	fields := []field{{"PUBLIC KEY", wg.PublicKey, plain}}
	for _, l := range wg.Links {
		by := "in the kernel"
		if l.UserSpace {
			by = "in a process, as the kernel has no module wireguard"
		}
		fields = append(fields, field{"LINK", fmt.Sprintf("%s, UDP %d, %s", l.Name, l.Port, by), plain})
	}
	a.screen.sheet(w, fields)
	if len(wg.Peers) == 0 {
		return
	}
	fmt.Fprintln(w)
	row(w, "PEER", "SUBNETS", "STATE", "HANDSHAKE", "ENDPOINT", "RECEIVED", "SENT", "PUBLIC-KEY")
	for _, p := range wg.Peers {
		name := p.Host
		if p.Outside {
			name += " (outside)"
		}
		row(w, name, strings.Join(p.Subnets, ","), a.peerState(p), a.ago(p.Handshake), p.Endpoint,
			bytesOf(p.Received), bytesOf(p.Sent), p.PublicKey)
	}
}

// statusWireGuard is one line.
func (a *app) statusWireGuard(wg api.WireGuard) field {
	f := field{"WIREGUARD", "", good}
	up := 0
	for _, p := range wg.Peers {
		if p.Up(a.now()) {
			up++
		}
		if p.Mute() {
			f.tone = uneasy
		}
	}
	f.value = fmt.Sprintf("%s, %d up, in the kernel", plural(len(wg.Peers), "peer"), up)
	if slices.ContainsFunc(wg.Links, func(l api.WireGuardLink) bool { return l.UserSpace }) {
		f.value = fmt.Sprintf("%s, %d up, in a process: slower, and %d kB of memory for each",
			plural(len(wg.Peers), "peer"), up, api.WireGuardProcessPeer>>10)
	}
	return f
}

// ago is how long it is since a time, or that it never was.
func (a *app) ago(at *time.Time) string {
	if at == nil {
		return "never"
	}
	return rough(a.now().Sub(*at)) + " ago"
}

// bytesOf is a number of bytes to about three digits.
func bytesOf(n uint64) string {
	if n < 10_000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1000, 0
	for ; value >= 1000 && unit < 3; unit++ {
		value /= 1000
	}
	return fmt.Sprintf("%.3g %cB", value, "kMGT"[unit])
}

func (a *app) wireGuardRotateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Give this host another wireguard key, without losing a packet",
		Long: `Give this host another wireguard key. What others send by the sessions that they have still arrives, while they hear of the new
key through etcd and agree on new sessions. Of hosts that do this at the same time one after the other does. If etcd does not answer nothing is changed. It needs
root.

A host that hears nothing of etcd just then does not reach this one from the end of its session, three minutes at most, until it
hears of etcd again; peers outside the network need the new key: see overlayctl peers config.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), rotateTimeout)
			defer cancel()
			key, err := api.Dial(settings.Socket(a.settings.RunDir)).RotateWireGuard(ctx, a.overlay)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "the new public key is %s\n", key)
			return err
		},
	}
}
