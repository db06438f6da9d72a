package enforcer

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"github.com/google/renameio/v2"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

const (
	memoryName = "policy.json"
	// mostMemory bounds the file: 300,000 endpoints with 200 bytes of labels each.
	mostMemory = 128 << 20
	// restMemory is between two writes, and a second more for each thousand endpoints.
	restMemory = 2 * time.Second
	// restPolicies is the same if policies changed, which is seldom: who is started without etcd must not open what was closed.
	restPolicies = time.Second
	// muchGarbage is how large a file is, in bytes, after whose writing memory is given back.
	muchGarbage = 1 << 20
)

// memory is what the host remembers of what is in force, for a start without etcd. There is none without policies.
type memory struct {
	path    string
	network string
	dirty   bool
	due     time.Time // when it may be written
	written time.Time // when it was
	there   bool      // the file is, or may be
	err     error
	peers   json.RawMessage // as read at the start
}

// remembered is the file.
type remembered struct {
	Version   int               `json:"version"`
	Network   string            `json:"network"`
	Values    map[string][]byte `json:"values"`              // of policies and namespaces, by key
	Endpoints json.RawMessage   `json:"endpoints,omitempty"` // other hosts': rememberedPeer, of which there are many
}

type rememberedPeer struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Lease int64  `json:"lease"`
}

// recall takes in what is remembered: etcd is measured by it. It is in force if etcd does not answer.
func (e *Enforcer) recall() {
	m := &e.memory
	data, err := readMemory(m.path)
	m.there = !errors.Is(err, fs.ErrNotExist)
	var r remembered
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil || r.Version != 1:
		e.cfg.Log.Warn("what is remembered of policies cannot be read", "file", m.path, "err", err)
		return
	case r.Network != m.network:
		return
	}
	for key, value := range r.Values {
		e.believed.set(key, value)
	}
	m.peers = r.Endpoints
}

func readMemory(path string) ([]byte, error) {
	f, err := subnet.OpenFile(path, mostMemory)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, mostMemory)) // it may have grown since
}

// remember writes what is in force, if that has changed, now and then; at the end, at once.
func (e *Enforcer) remember(now time.Time, end bool) {
	m := &e.memory
	if !m.dirty || !e.complete || now.Before(m.due) && !end {
		return
	}
	m.dirty = false
	if !e.believed.enforces() {
		if m.there {
			m.err = os.Remove(m.path)
			m.there = m.err != nil && !errors.Is(m.err, fs.ErrNotExist)
		}
		return
	}
	m.written, m.due = now, now.Add(restMemory+time.Duration(e.peers.all)*time.Millisecond)
	m.there = true
	size, err := e.write()
	if size > muchGarbage {
		go debug.FreeOSMemory() // of what was made to be written, and at the start to be read
	}
	if err != nil {
		err = fmt.Errorf("policies cannot be remembered for the next start: %w", err)
		if m.err == nil {
			e.cfg.Log.Warn("policies are not remembered", "err", err)
		}
		m.dirty = true // again when it is due
	}
	m.err = err
}

// write writes the file, and says how long it is. Other hosts' endpoints go there one by one.
func (e *Enforcer) write() (size int, err error) {
	m := &e.memory
	f, err := renameio.NewPendingFile(m.path, renameio.WithPermissions(0o600), renameio.WithExistingPermissions())
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Cleanup() }() // nothing is left to do if it took the old one's place
	w := bufio.NewWriterSize(f, 64<<10)
	put := func(before string, v any, less int) {
		data, _ := json.Marshal(v) // cannot fail: strings only
		_, _ = w.WriteString(before)
		_, _ = w.Write(data[:len(data)-less]) // Flush says what went wrong
		size += len(before) + len(data)
	}
	put("", remembered{Version: 1, Network: m.network, Values: e.believed.values}, len("}"))
	before := `,"endpoints":[`
	for key, from := range e.compiler.Sourced() {
		_, value, _ := e.compiler.Endpoint(key).Publish("")
		put(before, rememberedPeer{key, string(value), from.Lease}, 0)
		if before = ","; size > mostMemory {
			return size, fmt.Errorf("policies and endpoints take more than %d MiB", mostMemory>>20)
		}
	}
	if before == "," {
		_ = w.WriteByte(']')
	}
	_ = w.WriteByte('}')
	if err := w.Flush(); err != nil {
		return size, err
	}
	return size, f.CloseAtomicallyReplace()
}

// rely has the remembered endpoints count: etcd does not say which there are.
func (e *Enforcer) rely() {
	var all []rememberedPeer
	if err := json.Unmarshal(e.memory.peers, &all); err != nil && e.memory.peers != nil {
		e.cfg.Log.Warn("what is remembered of other hosts' endpoints cannot be read", "file", e.memory.path, "err", err)
	}
	e.memory.peers = nil
	var n etcdstore.News
	for _, p := range all {
		kv := etcdstore.KeyValue{Key: etcdstore.EndpointDir + p.Key, Value: []byte(p.Value), LeaseID: p.Lease}
		if covers(e.following.ranges, []string{kv.Key}) {
			n.Put = append(n.Put, kv)
		}
	}
	e.peers.hear(n, e.hostID())
	e.track(e.compiler.Flush()) // nothing is in the kernel yet: it gets all there is
}
