package identity

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/overlayd/overlayd/policy"
)

const maxName = 253

var (
	nameRule = regexp.MustCompile(`^[A-Za-z0-9][-_.A-Za-z0-9]*$`)
	portRule = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`) // IANA's service names
)

// ValidNamespace says whether a namespace may be called so.
func ValidNamespace(name string) bool { return policy.ValidateNamespace(name) == nil }

// ValidName says whether an endpoint may be called so: as runtimes call containers, no longer than Kubernetes' names.
func ValidName(name string) bool { return len(name) <= maxName && nameRule.MatchString(name) }

// ValidLabel says whether Kubernetes would take the label.
func ValidLabel(key, value string) bool {
	return policy.ValidateLabels(map[string]string{key: value}) == nil
}

// ParsePort parses name:80/tcp; without a protocol it is TCP.
func ParsePort(text string) (policy.NamedPort, error) {
	name, rest, ok := strings.Cut(text, ":")
	number, protocol, hasProtocol := strings.Cut(rest, "/")
	if !hasProtocol {
		protocol = "tcp"
	}
	n, err := strconv.ParseUint(number, 10, 16)
	p := policy.NamedPort{Name: name, Port: uint16(n), Protocol: policy.Protocol(strings.ToUpper(protocol))}
	if !ok || err != nil {
		return p, errors.New("it must be as http:80/tcp")
	}
	return p, ValidPort(p)
}

// ValidPort says what is wrong with a named port.
func ValidPort(p policy.NamedPort) error {
	switch {
	case len(p.Name) > 15 || !portRule.MatchString(p.Name) || !strings.ContainsFunc(p.Name, func(r rune) bool { return r >= 'a' }):
		return fmt.Errorf("%s: a port's name has up to 15 lower-case letters, digits and -, and a letter among them", quote(p.Name))
	case p.Port == 0:
		return errors.New("0 is no port")
	case p.Protocol != policy.TCP && p.Protocol != policy.UDP && p.Protocol != policy.SCTP:
		return fmt.Errorf("%s is none of tcp, udp and sctp", quote(string(p.Protocol)))
	}
	return nil
}
