package main

import (
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/cmd/internal/names"
)

// names answers for names in a network, as long as its enforcer runs; nil: nobody does. Then containers must not be told to ask here.
func (c *config) names(network string, metrics prometheus.Registerer) (*names.Server, error) {
	dir := filepath.Dir(c.subnetFileOf(network)) // where the CNI plugin looks
	if !c.told.Names {
		return nil, names.Withdraw(dir)
	}
	log := c.log
	if network != "" {
		log = log.With("overlay", network)
	}
	return names.New(names.Config{ResolvConf: "/etc/resolv.conf", Dir: dir, Registerer: metrics, Log: log}), nil
}
