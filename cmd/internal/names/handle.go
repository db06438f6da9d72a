package names

import (
	"context"
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"
)

// outcome is what becomes of a question, as the metric overlayd_names_queries_total names it.
type outcome string

const (
	answered  outcome = "answered"  // a name of a container's
	absent    outcome = "absent"    // no container has it
	unknown   outcome = "unknown"   // etcd has not said whether one has
	forwarded outcome = "forwarded" // asked of the host's resolvers
	silent    outcome = "silent"    // of which none answered
	refused   outcome = "refused"   // not for who asks
	dropped   outcome = "dropped"   // too many of one container's
	garbage   outcome = "garbage"   // none
)

var outcomes = []outcome{answered, absent, unknown, forwarded, silent, refused, dropped, garbage}

// mostBytes is what fits an answer by UDP at most: larger ones would be fragments.
const mostBytes = 1232

func (s *Server) count(o outcome) { s.metrics.WithLabelValues(string(o)).Inc() }

// handle answers a query, or says what has to be called, aside, with a copy of it: it may take its time. No answer: nil.
func (s *Server) handle(ctx context.Context, query []byte, from asker, tcp bool) (answer []byte, later func(query []byte) []byte) {
	var m dns.Msg
	if err := m.Unpack(query); err != nil || m.Response || len(m.Question) != 1 {
		s.count(garbage)
		return malformed(query), nil
	}
	q := m.Question[0]
	name := dns.CanonicalName(q.Name)
	most := sizeOf(&m, tcp)
	reply := replyTo(&m)
	opt := m.IsEdns0()
	switch {
	case m.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
	case opt != nil && opt.Version() != 0:
		reply.Rcode = dns.RcodeBadVers
	case q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR:
		reply.Rcode = dns.RcodeRefused
	case q.Qclass == dns.ClassINET && s.zone.owns(q, name):
		if s.zone.complete(name, from) {
			return s.say(reply, name, from, true, most), nil
		}
		return s.aside(from, false, reply, func([]byte) []byte {
			return s.say(reply, name, from, s.zone.await(ctx, name, from), most)
		})
	case from.host: // its resolvers are asked by itself; if they ask here, for all, there would be no end
		reply.Rcode = dns.RcodeRefused
	default:
		return s.aside(from, true, reply, func(query []byte) []byte { return s.pass(ctx, query, reply, from, tcp, most) })
	}
	s.count(refused)
	return pack(reply, most), nil
}

// aside has something done later, if not too much is.
func (s *Server) aside(from asker, asks bool, reply *dns.Msg, do func([]byte) []byte) ([]byte, func([]byte) []byte) {
	done, ok := s.limits.wait(from.addr, asks)
	if !ok {
		s.count(dropped)
		reply.Rcode = dns.RcodeServerFailure
		return pack(reply, mostBytes), nil
	}
	return nil, func(query []byte) []byte {
		defer done()
		return do(query)
	}
}

// say answers for the zone.
func (s *Server) say(reply *dns.Msg, name string, from asker, complete bool, most int) []byte {
	s.zone.answer(reply, name, from, complete)
	switch {
	case len(reply.Answer) > 0:
		s.count(answered)
	case reply.Rcode == dns.RcodeServerFailure:
		s.count(unknown)
	default:
		s.count(absent)
	}
	return pack(reply, most)
}

// pass has the host's resolvers answer: neither ourselves, nor who asks, who may be one of them.
func (s *Server) pass(ctx context.Context, query []byte, reply *dns.Msg, from asker, tcp bool, most int) []byte {
	answer, err := s.forward.ask(ctx, query, tcp, func(r netip.Addr) bool { return r == from.addr || s.local(r) })
	if err != nil {
		s.count(silent)
		reply.Rcode = dns.RcodeServerFailure
		return pack(reply, most)
	}
	s.count(forwarded)
	return cut(answer, most)
}

func replyTo(m *dns.Msg) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetReply(m)
	reply.RecursionAvailable = true
	reply.Compress = true
	if m.IsEdns0() != nil {
		reply.SetEdns0(mostBytes, false)
	}
	return reply
}

// sizeOf is how long an answer to a query may be.
func sizeOf(m *dns.Msg, tcp bool) int {
	opt := m.IsEdns0()
	switch {
	case tcp:
		return dns.MaxMsgSize
	case opt == nil:
		return dns.MinMsgSize
	}
	return min(max(int(opt.UDPSize()), dns.MinMsgSize), dns.MaxMsgSize-1)
}

// pack makes a message of at most so many bytes.
func pack(m *dns.Msg, most int) []byte {
	if most != dns.MaxMsgSize {
		most = min(most, mostBytes)
	}
	if len(m.Answer) > 8 {
		m.Truncate(most)
	}
	data, err := m.Pack()
	if err != nil {
		return nil
	}
	return data
}

// malformed is the answer to what is no query: none if it says that it is an answer, so that nobody is answered for ever.
func malformed(query []byte) []byte {
	if len(query) < headerLen || query[2]&0x80 != 0 {
		return nil
	}
	answer := make([]byte, headerLen)
	copy(answer, query[:2])
	binary.BigEndian.PutUint16(answer[2:], 0x8000|uint16(query[2]&0x78)<<8|uint16(dns.RcodeFormatError))
	return answer
}
