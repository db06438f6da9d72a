package compile

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"

	"github.com/overlayd/overlayd/policy"
)

// class is the endpoints that policies cannot tell apart: of one namespace, with the same labels and named ports.
type class struct {
	ns      *namespace
	key     string // in Compiler.classes
	labels  string // the part of key that the labels are, see appendLabel
	ports   []namedPort
	members []*endpoint
	local   int     // how many of them are local
	terms   []*term // those in use by groups that mean it
	sides   sides   // of its local members
}

// sides are the groups of a local address, by direction.
type sides [2]*group

// direction is that of a policy, seen from the endpoint.
type direction int

const (
	in direction = iota
	out
)

type namedPort struct {
	name  string
	proto uint8
	port  uint16
}

// namespace is one that endpoints are in, or that has been described.
type namespace struct {
	name    string
	labels  []label // with its name's
	def     policy.Default
	known   bool // somebody has described it
	classes map[*class]bool
}

// label is one of an endpoint's or a namespace's.
type label struct {
	key, value string
	encoded    string // both, as appendLabel has them; empty of a namespace's
}

// appendLabel encodes a label so that of two labels in sequence none can be taken for another.
func appendLabel(b []byte, key, value string) []byte {
	return appendString(appendString(b, key), value)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// cutString returns the string at the beginning of s, and how far it goes.
func cutString(s string) (string, int) {
	var size, shift, i int
	for {
		b := s[i]
		i++
		size |= int(b&0x7f) << shift
		if b < 0x80 {
			return s[i : i+size], i + size
		}
		shift += 7
	}
}

// decode appends the labels that are encoded in s, sorted by key.
func decode(labels []label, s string) []label {
	for len(s) > 0 {
		key, n := cutString(s)
		value, m := cutString(s[n:])
		labels = append(labels, label{key, value, s[:n+m]})
		s = s[n+m:]
	}
	return labels
}

func appendLabels(b []byte, labels map[string]string) []byte {
	var room [32]string
	keys := slices.AppendSeq(room[:0], maps.Keys(labels))
	slices.Sort(keys)
	for _, key := range keys {
		b = appendLabel(b, key, labels[key])
	}
	return b
}

// classOf returns the class that an endpoint belongs to.
func (c *Compiler) classOf(e *Endpoint) *class {
	ports := make([]namedPort, 0, len(e.Ports))
	for _, p := range e.Ports {
		ports = append(ports, namedPort{p.Name, protocol(p.Protocol), p.Port})
	}
	slices.SortFunc(ports, comparePorts)
	ports = slices.Compact(ports)
	key := appendString(make([]byte, 0, 256), e.Namespace)
	from := len(key)
	key = appendLabels(key, e.Labels)
	to := len(key)
	for _, p := range ports {
		key = binary.BigEndian.AppendUint16(append(appendString(key, p.name), p.proto), p.port)
	}
	key = binary.BigEndian.AppendUint32(key, uint32(to-from)) // So that ports cannot be taken for labels.
	if cl := c.classes[string(key)]; cl != nil {
		return cl
	}
	cl := &class{ns: c.namespace(e.Namespace), key: string(key), ports: slices.Clip(ports)}
	cl.labels = cl.key[from:to]
	c.classes[cl.key] = cl
	cl.ns.classes[cl] = true
	c.fresh = append(c.fresh, cl)
	return cl
}

func comparePorts(a, b namedPort) int {
	return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port))
}

func (c *Compiler) join(e *endpoint) {
	cl := e.class
	e.at = int32(len(cl.members))
	cl.members = append(cl.members, e)
	if e.local {
		cl.local++
		c.regroup[cl] = true
	}
}

func (c *Compiler) leave(e *endpoint) {
	cl := e.class
	last := len(cl.members) - 1
	cl.members[e.at] = cl.members[last]
	cl.members[e.at].at = e.at
	cl.members[last] = nil
	cl.members = cl.members[:last]
	if e.local {
		cl.local--
		c.regroup[cl] = true
	}
	if last == 0 {
		c.empty[cl] = true
	}
}

// namespace returns what is known of a namespace, which is never nothing.
func (c *Compiler) namespace(name string) *namespace {
	ns := c.namespaces[name]
	if ns == nil {
		ns = &namespace{name: name, labels: namespaceLabels(name, nil), classes: map[*class]bool{}}
		c.namespaces[name] = ns
	}
	return ns
}

// namespaceLabels are the labels of a namespace, sorted: that of its name is what its name is.
func namespaceLabels(name string, described map[string]string) []label {
	labels := []label{{key: policy.NameLabel, value: name}}
	for key, value := range described {
		if key != policy.NameLabel {
			labels = append(labels, label{key: key, value: value})
		}
	}
	slices.SortFunc(labels, func(a, b label) int { return cmp.Compare(a.key, b.key) })
	return labels
}

// denies says whether endpoints of the namespace are isolated if no policy selects them.
func (c *Compiler) denies(ns *namespace) bool { return cmp.Or(ns.def, c.def) == policy.Deny }
