package main

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// resolvConf is a file beside subnet.env that is there while overlayd answers for names.
const resolvConf = "resolv.conf"

// withNames has the container ask this host for names, at its gateways, if overlayd answers there, and nobody has said in the
// configuration whom to ask.
func withNames(result types.Result, a attachment.Attachment) (types.Result, error) {
	r, err := types100.NewResultFromResult(result)
	if err != nil || len(r.DNS.Nameservers) > 0 || !hostIsGateway(a.Delegate) {
		return result, err
	}
	if _, err := os.Stat(filepath.Join(a.RunDir, resolvConf)); err != nil {
		return result, nil
	}
	for _, ip := range r.IPs {
		if ip.Gateway != nil {
			r.DNS.Nameservers = append(r.DNS.Nameservers, ip.Gateway.String())
		}
	}
	return r, nil
}

// hostIsGateway says whether the gateway that the container is given is this host: host-local names one in any case.
func hostIsGateway(delegate json.RawMessage) bool {
	var conf struct {
		Type             string `json:"type"`
		IsGateway        bool   `json:"isGateway"`
		IsDefaultGateway bool   `json:"isDefaultGateway"`
	}
	_ = json.Unmarshal(delegate, &conf) // it was rendered here
	return conf.Type == "ptp" || conf.Type == "bridge" && (conf.IsGateway || conf.IsDefaultGateway)
}
