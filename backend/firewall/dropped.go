package firewall

import (
	"fmt"
	"maps"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"

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
		counted, err := c.Counters(&b, rtnl.Table{Family: family, Name: tableName})
		if err != nil {
			return packets, fmt.Errorf("read counters of nftables: %w", err)
		}
		maps.Copy(packets, counted)
	}
	return packets, nil
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
