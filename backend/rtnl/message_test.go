package rtnl

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAnswer(t *testing.T) {
	t.Parallel()
	errno := func(e unix.Errno) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e))) }
	var text Batch
	text.AttrString(unix.NLMSGERR_ATTR_MSG, "no way")
	request := make([]byte, unix.NLMSG_HDRLEN)
	for _, test := range []struct {
		name  string
		flags uint16
		body  []byte
		want  string
		is    error
	}{
		{"too short", 0, []byte{1}, "", nil},
		{"success", unix.NLM_F_CAPPED, append(errno(0), request...), "", nil},
		{"errno", unix.NLM_F_CAPPED, append(errno(unix.ESRCH), request...), "no such process", unix.ESRCH},
		{
			"with text", unix.NLM_F_CAPPED | unix.NLM_F_ACK_TLVS, append(append(errno(unix.EINVAL), request...), text.buf...),
			"invalid argument (no way)", unix.EINVAL,
		},
		{"text cut off", unix.NLM_F_ACK_TLVS, append(append(errno(unix.EINVAL), request...), 9, 0), "invalid argument", unix.EINVAL},
	} {
		err := answer(unix.NlMsghdr{Type: unix.NLMSG_ERROR, Flags: test.flags}, test.body)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != test.want || !errors.Is(err, test.is) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

// What comes from a socket must not make us panic, whatever it is.
func FuzzMessages(f *testing.F) {
	var b Batch
	b.Begin(unix.RTM_NEWLINK, 0, unix.IfInfomsg{})
	b.AttrString(unix.IFLA_IFNAME, "overlay.1")
	b.End()
	f.Add(b.buf)
	f.Fuzz(func(_ *testing.T, piece []byte) {
		for h, body := range Messages(piece) {
			_ = answer(h, body)
			for range Attributes(Header(body, &unix.IfInfomsg{})) {
			}
		}
	})
}
