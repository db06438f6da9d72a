package leasecache

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Moment is now, by the clocks of a host.
type Moment struct {
	Boot    string        `json:"boot"` // the kernel's name for this boot; empty: unknown
	Up      time.Duration `json:"up"`   // since the boot, the time that the host was suspended included
	Wall    time.Time     `json:"wall"`
	Trusted bool          `json:"trusted"` // Wall was set by somebody who knows the time: NTP, or a clock that runs while the host is off
}

// Now reads the clocks of this host.
func Now() Moment {
	m := Moment{Wall: time.Now()}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	m.Boot = strings.TrimSpace(string(boot))
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) == nil {
		m.Up = time.Duration(up.Nano())
	}
	m.Trusted = synchronised() || setByRTC(m.Wall)
	return m
}

func synchronised() bool {
	var t unix.Timex
	_, err := unix.Adjtimex(&t) // changes nothing
	return err == nil && t.Status&unix.STA_UNSYNC == 0
}

// setByRTC reports whether the kernel set the clock from a real-time clock. One whose battery is empty says some year
// of the past, and then the clock goes on from where the last shutdown left it: so the two must agree, but for a time
// zone.
func setByRTC(wall time.Time) bool {
	paths, _ := filepath.Glob("/sys/class/rtc/*/hctosys")
	for _, path := range paths {
		set, _ := os.ReadFile(path)
		text, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "since_epoch"))
		now, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if strings.TrimSpace(string(set)) == "1" && err == nil && wall.Sub(time.Unix(now, 0)).Abs() < 24*time.Hour {
			return true
		}
	}
	return false
}

// since tells how much time passed between seen and m, or why nobody can know.
func (m Moment) since(seen Moment) (passed time.Duration, unknown string) {
	sameBoot := m.Boot == seen.Boot && m.Boot != ""
	switch {
	case sameBoot:
		passed = m.Up - seen.Up
	case !seen.Trusted:
		return 0, "was last seen when the host's clock was not set yet, and the host was booted since"
	case !m.Trusted:
		return 0, "was last seen before the host was booted, and the host's clock is not set yet: it needs NTP or a real-time clock"
	default:
		passed = m.Wall.Sub(seen.Wall)
	}
	if passed < 0 {
		return 0, "was last seen at " + seen.Wall.Format(time.RFC3339) + ", which is yet to come: a clock of the host was set back"
	}
	return passed, ""
}
