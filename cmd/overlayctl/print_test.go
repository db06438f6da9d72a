package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRough(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Hour:                            "0s",
		0:                                     "0s",
		59*time.Second + 999*time.Millisecond: "59s",
		time.Minute:                           "1m",
		time.Hour - 1:                         "59m",
		24*time.Hour - time.Second:            "23h",
		47 * time.Hour:                        "47h",
		48 * time.Hour:                        "2d",
	} {
		if got := rough(d); got != want {
			t.Errorf("rough(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestBound(t *testing.T) {
	t.Parallel()
	lines := make([]string, 23)
	for i := range lines {
		lines[i] = fmt.Sprint(i)
	}
	got := bound(lines)
	if len(got) != 21 || got[20] != "and 3 more" || lines[20] != "20" {
		t.Errorf("bound: %v; lines: %v", got, lines)
	}
	if diff := cmp.Diff(lines[:20], bound(lines[:20])); diff != "" {
		t.Errorf("a short list (-want +got):\n%s", diff)
	}
}

func TestRowObeysNobody(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	row(&b, "a\x1b[2J", "", "x\ny\tz", "é")
	if got, want := b.String(), "a?[2J\t-\tx?y?z\té\n"; got != want {
		t.Errorf("row = %q, want %q", got, want)
	}
}
