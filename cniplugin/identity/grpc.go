package identity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"slices"
)

// Frames of HTTP/2 (RFC 9113), and what of them matters here. A client for two questions needs no more, and costs the plugin
// neither the 4 MB nor the millisecond that gRPC's own does.
const (
	frameData     = 0
	frameHeaders  = 1
	frameReset    = 3
	frameSettings = 4
	framePing     = 6
	frameGoAway   = 7
	frameWindow   = 8

	flagAck        = 1
	flagEndStream  = 1
	flagEndHeaders = 4
	flagPadded     = 8

	preface  = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	maxFrame = 16 << 10 // that of a client which asks for no more

	// maxAnswer is how much is read in all; so much may be sent with nobody saying that it was read.
	maxAnswer = 4 << 20
)

// callAll makes all calls at once, and returns the answers; nil is one of an error, such as that there is no such container.
func callAll(conn net.Conn, calls []call) ([][]byte, error) {
	out := []byte(preface)
	out = frame(out, frameSettings, 0, 0, binary.BigEndian.AppendUint32([]byte{0, 4}, maxAnswer)) // SETTINGS_INITIAL_WINDOW_SIZE
	out = frame(out, frameWindow, 0, 0, binary.BigEndian.AppendUint32(nil, maxAnswer))
	for i, c := range calls {
		stream := uint32(2*i + 1)
		request := append([]byte{0x0a, byte(len(c.id))}, c.id...) // field 1, a string, in both
		body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request)))
		out = frame(out, frameHeaders, flagEndHeaders, stream, []byte(c.headers()))
		out = frame(out, frameData, flagEndStream, stream, append(body, request...))
	}
	if _, err := conn.Write(out); err != nil {
		return nil, err
	}
	answers, ended := make([][]byte, len(calls)), make([]bool, len(calls))
	for in := (&reader{r: io.LimitReader(conn, maxAnswer)}); slices.Contains(ended, false); {
		kind, flags, stream, payload, err := in.next()
		if err != nil {
			return nil, err
		}
		i := int(stream-1) / 2
		switch {
		case kind == frameGoAway:
			return nil, errors.New("it hung up")
		case (kind == frameSettings || kind == framePing) && flags&flagAck == 0:
			if kind == frameSettings {
				payload = nil
			}
			if _, err := conn.Write(frame(nil, kind, flagAck, 0, payload)); err != nil {
				return nil, err
			}
		case stream%2 == 0 || i >= len(calls): // none of ours
		case kind == frameReset:
			ended[i] = true
		case kind == frameData:
			if payload, err = unpad(flags, payload); err != nil {
				return nil, err
			}
			answers[i] = append(answers[i], payload...)
			ended[i] = ended[i] || flags&flagEndStream != 0
		case kind == frameHeaders:
			ended[i] = ended[i] || flags&flagEndStream != 0
		}
	}
	for i := range answers {
		answers[i] = message(answers[i])
	}
	return answers, nil
}

// message is the one message of an answer; nil if it is not whole, or packed, which was not asked for.
func message(data []byte) []byte {
	if len(data) < 5 || data[0] != 0 || uint64(binary.BigEndian.Uint32(data[1:])) != uint64(len(data)-5) {
		return nil
	}
	return data[5:]
}

// frame appends a frame.
func frame(to []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	to = append(to, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	return append(binary.BigEndian.AppendUint32(to, stream), payload...)
}

// reader reads frames.
type reader struct{ r io.Reader }

func (r *reader) next() (kind, flags byte, stream uint32, payload []byte, err error) {
	var head [9]byte
	if _, err = io.ReadFull(r.r, head[:]); err != nil {
		return 0, 0, 0, nil, err
	}
	n := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
	if n > maxFrame {
		return 0, 0, 0, nil, fmt.Errorf("a frame of %d bytes", n)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r.r, payload)
	return head[3], head[4], binary.BigEndian.Uint32(head[5:]) &^ (1 << 31), payload, err
}

func unpad(flags byte, payload []byte) ([]byte, error) {
	if flags&flagPadded == 0 {
		return payload, nil
	}
	if len(payload) == 0 || int(payload[0]) >= len(payload) {
		return nil, errors.New("a frame that is padding alone")
	}
	return payload[1 : len(payload)-int(payload[0])], nil
}

// fields are those of a message of protocol buffers that have a length: strings, messages, maps' entries. What makes no sense
// ends them.
func fields(data []byte) iter.Seq2[uint64, []byte] {
	return func(yield func(uint64, []byte) bool) {
		for len(data) > 0 {
			key, n := binary.Uvarint(data)
			if n <= 0 {
				return
			}
			data = data[n:]
			size, n := binary.Uvarint(data)
			switch {
			case n <= 0:
				return
			case key&7 == 0: // a number, which was read for the length
				data = data[n:]
				continue
			case key&7 == 1 || key&7 == 5:
				size, n = map[uint64]uint64{1: 8, 5: 4}[key&7], 0
			case key&7 != 2:
				return
			}
			if data = data[n:]; size > uint64(len(data)) {
				return
			}
			if key&7 == 2 && !yield(key>>3, data[:size]) {
				return
			}
			data = data[size:]
		}
	}
}

// field is the last field of the number, which is the one that counts.
func field(data []byte, number uint64) (last []byte) {
	for n, value := range fields(data) {
		if n == number {
			last = value
		}
	}
	return last
}
