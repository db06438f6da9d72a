package policy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Limits of names and labels. Kubernetes has those of lengths; those of all labels together keep what one container can have
// every host read, and are generous: runtimes set about ten.
const (
	maxLabel     = 63 // of DNS, and of a label's name and value
	maxSubdomain = 253
	maxPortName  = 15 // IANA's
	// MaxLabels is how many labels one container or namespace may have.
	MaxLabels = 256
	// MaxLabelBytes is how long they may be, keys and values together.
	MaxLabelBytes = 16 << 10
)

const (
	dnsLabelFormat     = `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
	dnsSubdomainFormat = dnsLabelFormat + `(\.` + dnsLabelFormat + `)*`
	labelFormat        = `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`
)

var (
	dnsLabel     = regexp.MustCompile(`^` + dnsLabelFormat + `$`)
	dnsSubdomain = regexp.MustCompile(`^` + dnsSubdomainFormat + `$`)
	labelPart    = regexp.MustCompile(`^` + labelFormat + `$`)
	portName     = regexp.MustCompile(`^[-a-z0-9]+$`)
)

// What the API server says, so that people find it in a search.
const (
	dnsLabelRule = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an " +
		"alphanumeric character (e.g. 'my-name', or '123-abc', regex used for validation is '" + dnsLabelFormat + "')"
	dnsSubdomainRule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end " +
		"with an alphanumeric character (e.g. 'example.com', regex used for validation is '" + dnsSubdomainFormat + "')"
	labelRule = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
	keyRule   = labelRule + " (e.g. 'MyName', or 'my.name', or '123-abc', regex used for validation is '" + labelFormat + "')"
	valueRule = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an " +
		"alphanumeric character (e.g. 'MyValue', or 'my_value', or '12345', regex used for validation is '(" + labelFormat + ")?')"
)

func tooLong(most int) string { return fmt.Sprintf("must be no more than %d bytes", most) }

// badDNSLabel says what is wrong with the name of a namespace; empty: nothing.
func badDNSLabel(s string) string {
	switch {
	case len(s) > maxLabel:
		return tooLong(maxLabel)
	case dnsLabel.MatchString(s):
		return ""
	case dnsSubdomain.MatchString(s):
		return "must not contain dots"
	}
	return dnsLabelRule
}

// badSubdomain says what is wrong with the name of a policy; empty: nothing.
func badSubdomain(s string) string {
	switch {
	case len(s) > maxSubdomain:
		return tooLong(maxSubdomain)
	case !dnsSubdomain.MatchString(s):
		return dnsSubdomainRule
	}
	return ""
}

// badKey says what is wrong with a label's key, which Kubernetes calls a qualified name; empty: nothing.
func badKey(s string) string {
	prefix, name, prefixed := strings.Cut(s, "/")
	if !prefixed {
		prefix, name = "", s
	}
	switch {
	case strings.Contains(name, "/"):
		return "a valid label key " + keyRule + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
	case prefixed && prefix == "":
		return "prefix part must be non-empty"
	case prefixed && badSubdomain(prefix) != "":
		return "prefix part " + badSubdomain(prefix)
	case name == "":
		return "name part must be non-empty"
	case len(name) > maxLabel:
		return "name part " + tooLong(maxLabel)
	case !labelPart.MatchString(name):
		return "name part " + keyRule
	}
	return ""
}

// badValue says what is wrong with a label's value; empty: nothing.
func badValue(s string) string {
	switch {
	case len(s) > maxLabel:
		return tooLong(maxLabel)
	case s != "" && !labelPart.MatchString(s):
		return valueRule
	}
	return ""
}

// badPortName says what is wrong with the name of a port; empty: nothing.
func badPortName(s string) string {
	switch {
	case len(s) > maxPortName:
		return tooLong(maxPortName)
	case !portName.MatchString(s):
		return "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
	case !strings.ContainsFunc(s, func(r rune) bool { return r >= 'a' && r <= 'z' }):
		return "must contain at least one letter (a-z)"
	case strings.Contains(s, "--"):
		return "must not contain consecutive hyphens"
	case s[0] == '-' || s[len(s)-1] == '-':
		return "must not begin or end with a hyphen"
	}
	return ""
}

// ValidateNamespace returns an error that says in the API server's words why no namespace may have this name.
func ValidateNamespace(name string) error {
	if bad := badDNSLabel(name); bad != "" {
		return fmt.Errorf("namespace %s: %s", brief(name), bad)
	}
	return nil
}

// ValidateLabels returns an error, one line, that names the first label that Kubernetes would not take, or says that they are too
// many: more than [MaxLabels], or [MaxLabelBytes] in all.
func ValidateLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return fmt.Errorf("%d labels: at most %d can be had", len(labels), MaxLabels)
	}
	size := 0
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		size += len(key) + len(labels[key])
		if bad := badKey(key); bad != "" {
			return fmt.Errorf("label %s: %s", brief(key), bad)
		}
		if bad := badValue(labels[key]); bad != "" {
			return fmt.Errorf("label %s: value %s: %s", key, brief(labels[key]), bad)
		}
	}
	if size > MaxLabelBytes {
		return fmt.Errorf("%d bytes of labels: at most %d can be had", size, MaxLabelBytes)
	}
	return nil
}

// brief quotes what somebody else wrote so that it stays within a line.
func brief(s string) string {
	if len(s) > 80 {
		s = s[:77] + "..."
	}
	return fmt.Sprintf("%q", s)
}
