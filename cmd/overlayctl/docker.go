package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/subnet"
)

// dockerOptions says which options for dockerd are written, and how. It is flannel's mk-docker-opts.sh.
type dockerOptions struct {
	subnetFile, out      string
	individual, combined bool
	noIPMasq             bool
	key                  string
}

func (a *app) dockerOptsCommand() *cobra.Command {
	o := &dockerOptions{}
	cmd := &cobra.Command{
		Use:   "docker-opts",
		Short: "Write the options with which dockerd puts its containers on the overlay",
		Long: `Write the options with which dockerd puts its containers on the overlay, as a file of environment variables for
its unit, from the host's lease. It is what flannel's mk-docker-opts.sh writes, and takes the same letters: without -i
and -c it writes each option on its own and all of them combined.

Only IPv4 is written. It fails, after writing, if another host has the route to the subnet.`,
		Args: arguments(),
		RunE: func(*cobra.Command, []string) error {
			if o.subnetFile == "" {
				o.subnetFile = a.subnetFile()
			}
			return o.run(a.stdout)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.subnetFile, "subnet-file", "f", "", "`file` with the lease (default: subnet.env in --run-dir)")
	flags.StringVarP(&o.out, "out", "d", "/run/docker_opts.env", "`file` to write, - for standard output")
	flags.BoolVarP(&o.individual, "individual", "i", false, "write DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ and DOCKER_OPT_MTU")
	flags.BoolVarP(&o.combined, "combined", "c", false, "write all of them as one variable")
	flags.BoolVarP(&o.noIPMasq, "no-ip-masq", "m", false, "leave --ip-masq out")
	flags.StringVarP(&o.key, "key", "k", "DOCKER_OPTS", "`name` of the one variable; what it holds now comes first in it")
	return cmd
}

func (o *dockerOptions) run(stdout io.Writer) error {
	if !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(o.key) {
		return usageError{fmt.Errorf("--key: %q is no name of a variable", o.key)}
	}
	env, err := subnet.ReadEnv(o.subnetFile)
	if err != nil {
		return err
	}
	var own netip.Prefix
	for _, p := range env.Subnets {
		if p.Addr().Is4() {
			own = p
		}
	}
	if !own.IsValid() {
		return fmt.Errorf("%s: no IPv4 subnet, without which dockerd has no --bip", o.subnetFile)
	}
	if err := o.write(o.format(own, env), stdout); err != nil {
		return err
	}
	return notElsewhere(own.Masked())
}

// format is the file, byte for byte as flannel's script writes it.
func (o *dockerOptions) format(own netip.Prefix, env subnet.Env) string {
	options := []struct{ name, text string }{
		{"BIP", "--bip=" + own.String()},
		{"IPMASQ", fmt.Sprintf("--ip-masq=%t", !env.IPMasq)}, // one of the two masquerades
		{"MTU", fmt.Sprintf("--mtu=%d", env.MTU)},
	}
	var lines, all strings.Builder
	for _, option := range options {
		if option.name == "IPMASQ" && o.noIPMasq {
			continue
		}
		fmt.Fprintf(&lines, "DOCKER_OPT_%s=\"%s\"\n", option.name, option.text)
		all.WriteString(" " + option.text)
	}
	text := ""
	if o.individual || !o.combined {
		text = lines.String()
	}
	if o.combined || !o.individual {
		text += fmt.Sprintf("%s=\"%s%s\"\n", o.key, os.Getenv(o.key), all.String())
	}
	return text
}

func (o *dockerOptions) write(text string, stdout io.Writer) error {
	if o.out == "-" {
		_, err := io.WriteString(stdout, text)
		return err
	}
	return renameio.WriteFile(o.out, []byte(text), 0o644, renameio.WithStaticPermissions(0o644))
}

// notElsewhere fails if this host reaches the subnet by way of another one: then the file is a former lease's.
func notElsewhere(own netip.Prefix) error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return err
	}
	for _, r := range routes {
		if r.Gw != nil && r.Dst != nil && r.Dst.String() == own.String() {
			return fmt.Errorf("%s is another host's: there is a route to it via %s", own, r.Gw)
		}
	}
	return nil
}
