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
	Boot    string        // the kernel's name for this boot; empty: unknown
	Netns   string        `json:"-"` // the network namespace: hosts in containers share a boot
	Up      time.Duration // since the boot, the time that the host was suspended included
	Wall    time.Time
	Trusted bool // Wall was set by somebody who knows the time: NTP, or a clock that runs while the host is off
}

// Now reads the clocks of this host.
func Now() Moment {
	m := Moment{Boot: readLine("/proc/sys/kernel/random/boot_id"), Wall: time.Now()}
	m.Netns, _ = os.Readlink("/proc/self/ns/net")
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) == nil {
		m.Up = time.Duration(up.Nano())
	}
	m.Trusted = synchronised() || setByRTC("/sys/class/rtc", m.Wall)
	return m
}

// readLine reads a file of one line; empty: it cannot be read.
func readLine(path string) string {
	text, _ := os.ReadFile(path)
	return strings.TrimSpace(string(text))
}

// synchronised reports whether NTP has set the clock: the kernel says so, or systemd-timesyncd where a unit with
// ProtectClock= may not ask the kernel.
func synchronised() bool {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err == nil { // changes nothing
		return t.Status&unix.STA_UNSYNC == 0
	}
	_, err := os.Stat("/run/systemd/timesync/synchronized")
	return err == nil
}

// setByRTC reports whether the kernel set the clock from one of the real-time clocks in the directory dir. One whose
// battery is empty says some year of the past, and then the clock goes on from where the last shutdown left it: so the
// two must agree, but for a time zone.
func setByRTC(dir string, wall time.Time) bool {
	clocks, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, rtc := range clocks {
		now, err := strconv.ParseInt(readLine(rtc+"/since_epoch"), 10, 64)
		if err == nil && readLine(rtc+"/hctosys") == "1" && wall.Sub(time.Unix(now, 0)).Abs() < 24*time.Hour {
			return true
		}
	}
	return false
}

// host names this boot of this host.
func (m Moment) host() string { return m.Boot + " " + m.Netns }

// since tells how much time passed between seen and m, or why nobody can know.
func (m Moment) since(seen Moment) (passed time.Duration, unknown string) {
	switch {
	case m.Boot == seen.Boot && m.Boot != "":
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
