package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/cmd/internal/names"
)

// names answers for names, in g, until ctx ends; nil: it does not. Then containers must not be told to ask here.
func (c *config) names(ctx context.Context, g *errgroup.Group, metrics prometheus.Registerer) (*names.Server, error) {
	if !c.told.Names {
		return nil, names.Withdraw(c.runDir)
	}
	s := names.New(names.Config{ResolvConf: "/etc/resolv.conf", RunDir: c.runDir, Registerer: metrics, Log: c.log})
	g.Go(func() error { return s.Run(ctx) })
	return s, nil
}
