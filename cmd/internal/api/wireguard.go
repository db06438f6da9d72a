package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// WireGuard is what the wireguard links of a host know.
type WireGuard struct {
	PublicKey string          `json:"publicKey"`
	KeyFile   string          `json:"keyFile"` // where the private one is
	Links     []WireGuardLink `json:"links"`   // never null
	Peers     []WireGuardPeer `json:"peers"`   // never null
}

// WireGuardLink is a wireguard link of the host.
type WireGuardLink struct {
	Name      string `json:"name"`
	Port      uint16 `json:"port"`      // UDP
	UserSpace bool   `json:"userSpace"` // a process carries its packets, since the kernel has no module for it
}

// WireGuardPeer is a peer of such a link.
type WireGuardPeer struct {
	Link      string     `json:"link"`
	PublicKey string     `json:"publicKey"`
	Host      string     `json:"host"` // empty: flannel's
	Subnets   []string   `json:"subnets"`
	Outside   bool       `json:"outside"`   // it is no host of the network
	Endpoint  string     `json:"endpoint"`  // where packets go now; empty: nowhere before it calls
	Handshake *time.Time `json:"handshake"` // the last one; null: never
	Received  uint64     `json:"received"`  // bytes
	Sent      uint64     `json:"sent"`
}

// WireGuardProcessPeer is what a peer costs in a process that carries a link, in bytes of memory (docs/backends.md).
const WireGuardProcessPeer = 24 << 10

// Up says whether the peer is there, as far as the last handshake tells.
func (p WireGuardPeer) Up(now time.Time) bool {
	return p.Handshake != nil && now.Sub(*p.Handshake) < WireGuardUp
}

// Mute says whether the peer was sent to and has never shaken hands: one outside the network comes and goes.
func (p WireGuardPeer) Mute() bool { return p.Handshake == nil && p.Sent > 0 && !p.Outside }

// WireGuardUp is how young the last handshake is with a peer that is there: as long as packets flow, there is one every two
// minutes, and what the last one agreed on ends after three (wireguard's paper, 6.1); the rest is for packets that were lost.
const WireGuardUp = 275 * time.Second

// RotateWireGuard has the daemon take another wireguard key in a network, "" being the unnamed one, and returns the public one when etcd has it. The error says what is not
// so: nothing was changed, or peers have not heard of it yet.
func (c *Client) RotateWireGuard(ctx context.Context, network string) (publicKey string, err error) {
	err = c.do(ctx, http.MethodPost, "wireguard/rotate?network="+url.QueryEscape(network), nil, &publicKey)
	return publicKey, err
}

// rotate answers a request for another wireguard key.
func rotate(source Source) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !mayChange(r) {
			answer(w, http.StatusForbidden, "only root may change anything")
			return
		}
		key, err := source.RotateWireGuard(r.Context(), r.URL.Query().Get("network"))
		if err != nil {
			answer(w, http.StatusConflict, err.Error())
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(key)
	}
}
