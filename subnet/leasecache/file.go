package leasecache

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

const (
	// maxFile bounds the file: three times 60,000 leases of both families.
	maxFile = 128 << 20
	// maxLine is more than a lease or a network config can take.
	maxLine = 1 << 20
	// crcLen is the length of what appendCRC appends.
	crcLen = len(`{"crc":"00000000",`)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// line is a line of the file. What it does not mention stays as it was. The first one names the host.
type line struct {
	Host   string  `json:"host,omitempty"` // HostID
	Config *string `json:"config,omitempty"`
	Own    *own    `json:"own,omitempty"`
	Stamp  *stamp  `json:"stamp,omitempty"`
	lease          // of a peer
}

// lease is a lease in the form that it has in etcd.
type lease struct {
	Key            string          `json:"key,omitempty"`
	Value          json.RawMessage `json:"value,omitempty"` // absent: the peer is gone
	LeaseID        int64           `json:"lease,omitempty"`
	CreateRevision int64           `json:"create,omitempty"`
	ModRevision    int64           `json:"mod,omitempty"`
}

func newLease(r *subnet.Record) (lease, error) {
	value, err := r.Value()
	return lease{r.Key(), value, r.LeaseID, r.CreateRevision, r.ModRevision}, err
}

func (l lease) record() (*subnet.Record, error) {
	parsed, err := subnet.ParseLease(l.Key, l.Value)
	return &subnet.Record{Lease: parsed, CreateRevision: l.CreateRevision, ModRevision: l.ModRevision, LeaseID: l.LeaseID}, err
}

// own is the host's own lease and what was noted with it.
type own struct {
	lease
	Boot string `json:"boot"`           // of the host when it held the lease
	NIC  string `json:"nic,omitempty"`  // MAC of the link to the underlay
	Lost string `json:"lost,omitempty"` // what became of it; empty: it is held

	stamp  stamp
	until  time.Time // as the caller said it
	record *subnet.Record
}

// stamp says how long the own lease is good.
type stamp struct {
	Seen Moment        `json:"seen"`
	Left time.Duration `json:"left"` // from Seen on
}

// state is what the file says.
type state struct {
	host   string
	config []byte
	own    *own
	peers  map[string]*subnet.Record
	fault  string // what is wrong with the file
}

// entry is a line that was parsed: of a peer, nil if it is gone, or another.
type entry struct {
	key  string
	peer *subnet.Record
	line *line
}

func (s *state) apply(e entry) {
	switch {
	case e.peer != nil:
		s.peers[e.key] = e.peer
		return
	case e.line == nil:
		delete(s.peers, e.key)
		return
	}
	s.host = cmp.Or(e.line.Host, s.host)
	s.own = cmp.Or(e.line.Own, s.own)
	if e.line.Config != nil {
		s.config = append([]byte(nil), *e.line.Config...)
	}
	if e.line.Stamp != nil && s.own != nil {
		s.own.stamp = *e.line.Stamp
	}
}

// load reads the file. It is taken up to where it is damaged; the last line may be torn, which is no damage.
func load(path string) state {
	s := state{peers: make(map[string]*subnet.Record)}
	if err := s.load(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.fault = "the remembered leases cannot be read: " + err.Error()
		if s.own != nil {
			s.own.Lost = "does not count: " + s.fault // what is not read may say so
		}
	}
	return s
}

func (s *state) load(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // a FIFO would have us wait
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return fmt.Errorf("%s is not a file of at most %d MiB", path, maxFile>>20)
	}
	if err := s.read(f); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	return nil
}

// part is some lines of the file.
type part struct {
	text    []byte
	entries []entry
	err     error // why what follows the entries could not be parsed
}

// read reads lines until one is damaged. To parse them is most of the work, and done side by side.
func (s *state) read(r io.Reader) error {
	const together = 256 << 10 // bytes
	var parsing errgroup.Group
	parsing.SetLimit(runtime.GOMAXPROCS(0))
	var parts []*part
	next := new(part)
	parse := func() {
		p := next
		parts, next = append(parts, p), new(part)
		parsing.Go(func() error { p.parse(); return nil })
	}
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 64<<10), maxLine)
	scan.Split(wholeLines)
	var damage error
	crc, number := uint32(0), 1
	for ; scan.Scan(); number++ {
		if crc, damage = check(scan.Bytes(), crc); damage != nil {
			break
		}
		if next.text = append(next.text, scan.Bytes()...); len(next.text) > together {
			parse()
		}
	}
	parse()
	parsing.Wait()
	for _, p := range parts {
		for _, e := range p.entries {
			s.apply(e)
		}
		if p.err != nil {
			return p.err
		}
	}
	if err := cmp.Or(damage, scan.Err()); err != nil {
		return fmt.Errorf("line %d: %w", number, err)
	}
	return nil
}

// wholeLines splits into lines with their ends, and passes over a last line that has none.
func wholeLines(data []byte, _ bool) (advance int, token []byte, err error) {
	end := bytes.IndexByte(data, '\n') + 1
	if end == 0 {
		return 0, nil, nil
	}
	return end, data[:end], nil
}

// check returns the checksum of a line that follows one with the checksum before.
func check(text []byte, before uint32) (uint32, error) {
	var head [crcLen]byte
	crc := uint32(0)
	if len(text) > crcLen {
		crc = crc32.Update(before, castagnoli, text[crcLen:])
	}
	if !bytes.HasPrefix(text, appendCRC(head[:0], crc)) {
		return 0, errors.New("its checksum is wrong")
	}
	return crc, nil
}

// appendCRC begins a line with the checksum of its rest and of that of all lines before, so that one that is missing
// is noticed too.
func appendCRC(b []byte, crc uint32) []byte {
	b = append(b, `{"crc":"`...)
	b = hex.AppendEncode(b, binary.BigEndian.AppendUint32(nil, crc))
	return append(b, `",`...)
}

// parse takes the lines up to the first that cannot be understood.
func (p *part) parse() {
	p.entries = make([]entry, 0, bytes.Count(p.text, []byte("\n")))
	var l line
	for text := range bytes.Lines(p.text) {
		l = line{lease: lease{Value: l.Value[:0]}} // to use its memory again takes a third of the time
		if p.err = json.Unmarshal(text, &l); p.err != nil {
			return
		}
		e := entry{key: l.Key}
		if l.Key == "" {
			e.line = new(l)
		} else if peer, err := l.record(); err == nil {
			e.peer = peer // one that is no lease by the rules of this version is no peer
		}
		if l.Own != nil {
			if l.Own.record, p.err = l.Own.lease.record(); p.err != nil {
				return
			}
		}
		p.entries = append(p.entries, e)
	}
	p.text = nil
}
