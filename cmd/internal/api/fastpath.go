package api

import "fmt"

// FastPathMode is the setting fast-path.
type FastPathMode string

// The modes. What no policy has judged yet, what is translated, and what is unknown is never fast.
const (
	FastPathAuto FastPathMode = "auto" // where nothing on the host wants to see the packets
	FastPathOn   FastPathMode = "on"   // whatever rules there are
	FastPathOff  FastPathMode = "off"
)

// ParseFastPathMode reads a mode. To YAML on and off are true and false.
func ParseFastPathMode(text string) (FastPathMode, error) {
	switch text {
	case "auto":
		return FastPathAuto, nil
	case "on", "true":
		return FastPathOn, nil
	case "off", "false":
		return FastPathOff, nil
	}
	return "", fmt.Errorf("%q is none of auto, on and off", text)
}

// FastPath is what carries packets between containers of different hosts past most of the kernel.
type FastPath struct {
	Mode       FastPathMode      `json:"mode"`       // the setting, or what a command has put in its place
	Off        string            `json:"off"`        // why nothing is fast; empty: what may be is
	Lacking    bool              `json:"lacking"`    // the kernel, or the daemon's rights, cannot do it
	Peers      int               `json:"peers"`      // subnets that are reached by it
	Containers int               `json:"containers"` // of this host
	Slow       []SlowContainer   `json:"slow"`       // those of them that are not fast; never null
	Packets    map[string]uint64 `json:"packets"`    // by the way they took: "sent" and "received" are fast, others say why they were slow
}

// SlowContainer is a container of this host whose packets are not fast.
type SlowContainer struct {
	IP   string `json:"ip"`   // empty: all of the link's
	Link int    `json:"link"` // index
	Why  string `json:"why"`
}

// FastPackets counts the fast packets to and from a peer; one that the network card is to cut counts once.
type FastPackets struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}
