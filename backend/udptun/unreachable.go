package udptun

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Of the ICMP messages that say that there is no way (RFC 792), with flannel's time to live.
const (
	icmpHeaderLen  = 8
	icmpNoNet      = 3
	unreachableTTL = 8
	icmpEcho       = 8
)

// unreachable tells the sender of a packet that nobody has a lease of where it goes: at most so many times a second. It says so in
// the name of where it goes: in that of the link, as flannel does, the kernel would take it for a martian, and nobody heard it.
func (t *Tunnel) unreachable(p []byte, ip int) {
	if p[ipDest] >= 224 || p[ipSource] >= 224 || binary.BigEndian.Uint32(p[ipSource:]) == 0 || binary.BigEndian.Uint16(p[ipFragment:])&0x1fff != 0 {
		return // RFC 1122, 3.2.2
	}
	if p[ipProtocol] == protoICMP && (len(p) == ip || p[ip] != icmpEcho) {
		return
	}
	if !t.replies.Allow() {
		return
	}
	said := p[:min(len(p), ip+8)]
	length := ipHeaderLen + icmpHeaderLen + len(said)
	b := make([]byte, vnetLen+length)
	reply := b[vnetLen:]
	reply[0] = 0x45
	binary.BigEndian.PutUint16(reply[ipLength:], uint16(length))
	reply[ipTTL], reply[ipProtocol] = unreachableTTL, protoICMP
	copy(reply[ipSource:], p[ipDest:ipDest+4])
	copy(reply[ipDest:], p[ipSource:ipSource+4])
	seal(reply[:ipHeaderLen])
	message := reply[ipHeaderLen:]
	message[0] = icmpNoNet
	copy(message[icmpHeaderLen:], said)
	binary.BigEndian.PutUint16(message[2:], ^fold(sum(message, 0)))
	_, _ = unix.Write(t.tun.fd, b)
}

// limited does something at most once a minute.
type limited struct {
	mu sync.Mutex
	at time.Time
}

func (l *limited) do(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.at) > time.Minute {
		l.at = now
		f()
	}
}
