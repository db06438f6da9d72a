package enforce

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Denial is a packet that was dropped.
type Denial struct {
	Flow
	SrcPort uint16
	Egress  bool // what Src may send denies it, else what Dst may receive
}

// Of nfnetlink_log (linux/netfilter/nfnetlink_log.h).
const (
	logPacket    = unix.NFNL_SUBSYS_ULOG << 8
	logConfig    = unix.NFNL_SUBSYS_ULOG<<8 | 1
	logPayload   = 9 // NFULA_PAYLOAD
	logPrefix    = 10
	logCommand   = 1 // NFULA_CFG_CMD
	logMode      = 2
	logThreshold = 5
	logBind      = 1 // NFULNL_CFG_CMD_BIND
	logCopy      = 2 // NFULNL_COPY_PACKET
)

// readDenials reads what the rules log until ctx ends. There is one reader of a group: without, policies are in force all the
// same.
func (t *Table) readDenials(ctx context.Context) error {
	if t.quiet {
		<-ctx.Done()
		return nil
	}
	c, err := rtnl.DialNetfilter(t.ns, rtnl.AnswersSize)
	if err == nil {
		defer c.Close()
		err = bindLog(c)
	}
	if err != nil {
		t.log.Warn("cannot tell of packets that policies deny (they are counted)", "err", err)
		<-ctx.Done()
		return nil
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	for ctx.Err() == nil {
		if err := c.Listen(&sync.Mutex{}, logged{t.denials}); err != nil && ctx.Err() == nil {
			return fmt.Errorf("receive denials: %w", err)
		}
	}
	return nil
}

// bindLog has the group's packets come, each at once, with their headers.
func bindLog(c *rtnl.Conn) error {
	var b rtnl.Batch
	for _, attr := range []func(){
		func() { b.AttrU8(logCommand, logBind) },
		func() { b.Attr(logMode, append(be32(logSnap), logCopy, 0)) },
		func() { b.Attr(logThreshold, be32(1)) },
	} {
		b.Reset()
		b.Begin(logConfig, 0, [4]uint8{unix.AF_UNSPEC, 0, logGroup >> 8, logGroup & 0xff})
		attr()
		b.End()
		failed, err := c.Exec(&b, nil)
		if err == nil {
			err = failed[0]
		}
		if err != nil {
			return fmt.Errorf("nflog group %d: %w", logGroup, err)
		}
	}
	return nil
}

// logged is a listener.
type logged struct{ to chan<- Denial }

// Lose implements rtnl.Listener.
func (logged) Lose() {}

// Hear implements rtnl.Listener.
func (l logged) Hear(h unix.NlMsghdr, body []byte) {
	if h.Type != logPacket {
		return
	}
	var d Denial
	ok := false
	for _, packet := range rtnl.NftAttributes(body, logPayload) {
		d, ok = parsePacket(packet)
	}
	for _, prefix := range rtnl.NftAttributes(body, logPrefix) {
		d.Egress = unix.ByteSliceToString(prefix) == deniedOut
	}
	if ok {
		select {
		case l.to <- d:
		default:
		}
	}
}

// parsePacket reads the headers. Behind extension headers of IPv6 no ports are looked for.
func parsePacket(p []byte) (d Denial, ok bool) {
	var payload []byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		d.Src, d.Dst, d.Proto = rtnl.Addr(p[12:16]), rtnl.Addr(p[16:20]), p[9]
		payload = p[min(int(p[0]&15)*4, len(p)):]
	case len(p) >= 40 && p[0]>>4 == 6:
		d.Src, d.Dst, d.Proto = rtnl.Addr(p[8:24]), rtnl.Addr(p[24:40]), p[6]
		payload = p[40:]
	default:
		return d, false
	}
	switch d.Proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		if len(payload) >= 4 {
			d.SrcPort, d.Port = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
		}
	}
	return d, true
}

// Dropped are the packets that the tables of a network in a namespace have dropped, by the reason: "denied-in", "denied-out", "cut",
// "pending", which is counted as the unnamed network's. There are none where the kernel has no nftables.
func Dropped(ns netns.NsHandle, network string) (packets map[string]uint64, err error) {
	packets = map[string]uint64{}
	c, err := rtnl.DialNetfilter(ns, rtnl.AnswersSize)
	if err != nil {
		return packets, fmt.Errorf("read counters of policies: %w", err)
	}
	defer c.Close()
	var b rtnl.Batch
	tables := []rtnl.Table{tableOf(network)}
	if network == "" {
		tables = append(tables, pendingTable)
	}
	for _, table := range tables {
		counted, err := c.Counters(&b, table)
		if err != nil {
			return packets, fmt.Errorf("read counters of nft table inet %s: %w", table.Name, err)
		}
		for name, n := range counted {
			packets[name] = n
		}
	}
	return packets, nil
}

// collector offers the counters to Prometheus. They are read when somebody asks.
type collector struct {
	ns      netns.NsHandle
	network string
}

var droppedDesc = prometheus.NewDesc("overlayd_policy_dropped_packets_total",
	"Packets that policies dropped, by the reason; they go on when the rules are made anew.", []string{"reason"}, nil)

// Describe implements prometheus.Collector.
func (collector) Describe(to chan<- *prometheus.Desc) { to <- droppedDesc }

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	packets, _ := Dropped(c.ns, c.network)
	for reason, n := range packets {
		to <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(n), reason)
	}
}
