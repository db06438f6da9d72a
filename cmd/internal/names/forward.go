package names

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// patience is how long one resolver may take, patienceAll how long all may: who asked gives up after five seconds.
	patience    = 2 * time.Second
	patienceAll = 4500 * time.Millisecond
	rounds      = 2

	headerLen = 12
)

// buffers hold a message of any length: 64 KiB.
var buffers = sync.Pool{New: func() any { return new([1 << 16]byte) }}

var errSilent = errors.New("no resolver answers")

// forwarder asks the host's resolvers.
type forwarder struct {
	resolvers *resolvers
	port      uint16
}

// ask passes a query on as it is, and returns the answer as it is, but for the number. Those resolvers are asked that are not
// among some. It asks the next if one does not answer, or says that it cannot.
func (f forwarder) ask(ctx context.Context, query []byte, tcp bool, without func(netip.Addr) bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patienceAll)
	defer cancel()
	var unable []byte
	all := f.resolvers.now(without)
	for range rounds {
		for _, r := range all {
			answer, err := f.askOne(ctx, netip.AddrPortFrom(r, f.port), query, tcp)
			if ctx.Err() != nil && err != nil {
				break // it had no time
			}
			f.resolvers.answered(r, err == nil)
			switch {
			case err != nil:
			case able(answer):
				return answer, nil
			default:
				unable = answer
			}
		}
		if unable != nil {
			return unable, nil
		}
	}
	return nil, errSilent
}

// able says whether an answer is one: a resolver that fails, or refuses, leaves it to the next.
func able(answer []byte) bool {
	switch int(answer[3] & 0xf) {
	case dns.RcodeServerFailure, dns.RcodeNotImplemented, dns.RcodeRefused:
		return false
	}
	return true
}

func (f forwarder) askOne(ctx context.Context, to netip.AddrPort, query []byte, tcp bool) ([]byte, error) {
	network := "udp"
	if tcp {
		network = "tcp"
	}
	deadline := time.Now().Add(patience)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, to.String()) // a port of its own, that nobody guesses
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if d, ok := ctx.Deadline(); ok {
		deadline = d
	}
	_ = conn.SetDeadline(deadline)
	asked := bytes.Clone(query)
	binary.BigEndian.PutUint16(asked, uint16(rand.Uint32()))
	if err := send(conn, asked, tcp); err != nil {
		return nil, err
	}
	buf := buffers.Get().(*[1 << 16]byte)
	defer buffers.Put(buf)
	for {
		answer, err := receive(conn, buf[:], tcp)
		if err != nil {
			return nil, err
		}
		if answers(asked, answer) {
			copy(answer, query[:2])
			return bytes.Clone(answer), nil
		}
		if tcp {
			return nil, errors.New("it answers something else")
		}
	}
}

// send writes a message, over TCP with its length before it.
func send(w io.Writer, m []byte, tcp bool) error {
	if tcp {
		m = append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(m)), uint16(len(m))), m...)
	}
	_, err := w.Write(m)
	return err
}

// receive reads one.
func receive(r io.Reader, buf []byte, tcp bool) ([]byte, error) {
	if !tcp {
		n, err := r.Read(buf)
		return buf[:n], err
	}
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	m := buf[:binary.BigEndian.Uint16(length[:])]
	_, err := io.ReadFull(r, m)
	return m, err
}

// answers says whether a message is an answer to a query: of its number, and to its question.
func answers(query, m []byte) bool {
	asked, ok := question(query)
	said, is := question(m)
	return ok && is && m[2]&0x80 != 0 && bytes.Equal(query[:2], m[:2]) && (bytes.EqualFold(asked, said) || saysNothing(m))
}

// saysNothing says whether a message is an error without a question, as some answer what they do not understand.
func saysNothing(m []byte) bool { return len(m) == headerLen && m[3]&0xf != 0 }

// question is the one question of a message, as it stands there. A message of its header alone has an empty one.
func question(m []byte) ([]byte, bool) {
	if len(m) == headerLen && m[5] == 0 {
		return nil, true
	}
	if len(m) < headerLen || binary.BigEndian.Uint16(m[4:]) != 1 {
		return nil, false
	}
	i := headerLen
	for i < len(m) && m[i] != 0 {
		if m[i] >= 0x40 {
			return nil, false
		}
		i += 1 + int(m[i])
	}
	if i += 5; i > len(m) {
		return nil, false
	}
	return m[headerLen:i], true
}

// cut makes of an answer that is too long for who asked by UDP one that says so: it comes back by TCP.
func cut(answer []byte, most int) []byte {
	if len(answer) <= most {
		return answer
	}
	asked, ok := question(answer)
	if !ok {
		return answer[:0]
	}
	short := append(answer[:headerLen:headerLen], asked...)
	short[2] |= 0x02
	copy(short[6:headerLen], make([]byte, 6)) // nothing but the question
	return short
}
