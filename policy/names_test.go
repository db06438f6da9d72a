package policy

import (
	"regexp"
	"testing"
)

// TestFormats compares what is done by hand with the expressions that people are told.
func TestFormats(t *testing.T) {
	t.Parallel()
	dns, label := regexp.MustCompile(`^`+dnsLabelFormat+`$`), regexp.MustCompile(`^`+labelFormat+`$`)
	const letters = "azAZ09-_./ \n\x00\xffé"
	var try func(s string, more int)
	try = func(s string, more int) {
		if isDNSLabel(s) != dns.MatchString(s) {
			t.Errorf("%q is a DNS label: %t", s, isDNSLabel(s))
		}
		if isLabelPart(s) != label.MatchString(s) {
			t.Errorf("%q is a part of a label: %t", s, isLabelPart(s))
		}
		for i := range len(letters) {
			if more > 0 {
				try(s+letters[i:i+1], more-1)
			}
		}
	}
	try("", 4)
}
