package firewall

import (
	"encoding/binary"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Dropped are the packets that our tables in a namespace have dropped, by the counter, which says why. There are none where
// the kernel has no nftables.
func Dropped(ns netns.NsHandle) (packets map[string]uint64, err error) {
	packets = map[string]uint64{}
	c, err := rtnl.DialNetfilter(ns, rtnl.AnswersSize)
	if err != nil {
		return packets, fmt.Errorf("read counters of nftables: %w", err)
	}
	defer c.Close()
	var b rtnl.Batch
	for _, family := range families {
		b.Reset()
		b.BeginNft(unix.NFT_MSG_GETOBJ, 0, family)
		b.AttrString(unix.NFTA_OBJ_TABLE, tableName)
		b.End()
		err := c.Dump(&b, func(body []byte) {
			if name, n, ok := counter(body); ok {
				packets[name] = n
			}
		})
		if err != nil {
			return packets, fmt.Errorf("read counters of nftables: %w", err)
		}
	}
	return packets, nil
}

// counter reads a named counter.
func counter(body []byte) (name string, packets uint64, ok bool) {
	for typ, data := range rtnl.Attributes(body[min(nfgenmsgSize, len(body)):]) {
		switch typ {
		case unix.NFTA_OBJ_NAME:
			name = unix.ByteSliceToString(data)
		case unix.NFTA_OBJ_DATA:
			for _, n := range nested(data, unix.NFTA_COUNTER_PACKETS) {
				if ok = len(n) == 8; ok {
					packets = binary.BigEndian.Uint64(n)
				}
			}
		}
	}
	return name, packets, ok
}

// counted offers the counters to Prometheus. They are read when somebody asks.
type counted struct{ ns netns.NsHandle }

var droppedDesc = prometheus.NewDesc("overlayd_guard_dropped_packets_total",
	"Packets that the guard dropped, by the reason; from zero when the guard is installed anew.", []string{"reason"}, nil)

// Describe implements prometheus.Collector.
func (counted) Describe(to chan<- *prometheus.Desc) { to <- droppedDesc }

// Collect implements prometheus.Collector.
func (c counted) Collect(to chan<- prometheus.Metric) {
	packets, _ := Dropped(c.ns)
	for reason, n := range packets {
		to <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(n), reason)
	}
}
