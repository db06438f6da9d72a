package main

import (
	"bytes"
	"encoding/json"
	"net/url"
	"os"
	"regexp"
)

// redacted stands where a secret was.
const redacted = "[removed]"

// secrets are the shapes in which secrets appear in configurations and logs, also as a string within strings, as a line of a
// JSON log holds it: there each quote has backslashes before it. Of what start matches, the group named keep stays; then
// follow as many bytes of a secret as length says. Text is all that there is, at where the secret begins in it.
var secrets = []struct {
	start  *regexp.Regexp
	length func(text []byte, at int) int
}{
	// A private key in PEM, also one whose end is cut off.
	{regexp.MustCompile(`(?s)(?P<keep>-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)`), whole},
	// An HTTP header.
	{regexp.MustCompile(`(?i)(?P<keep>authorization\\*["']?:\s*)[^\r\n]+`), whole},
	// What lets a host join.
	{regexp.MustCompile(`(?P<keep>\bov1\.)[\w.-]+`), whole},
	// The user and password of a URL.
	{regexp.MustCompile(`(?P<keep>[a-zA-Z][a-zA-Z0-9+.-]*:(?:\\*/){2})`), userinfo},
	// password: x in YAML, to the end of the line; there may be commas in it.
	{regexp.MustCompile(`(?mi)(?P<keep>^[ \t-]*[\w.-]*` + names + `:[ \t]+)[^\s"'#|>\[][^\r\n]*`), whole},
	// password: x, "PSK": "x", token=x, --api-key x; not etcd-password-file: x, which is a path.
	{regexp.MustCompile(`(?i)(?P<keep>` + names + `\\*["']?(?:\s*[:=]\s*|\s+))`), value},
}

const names = `(?:password|passwd|passphrase|secret|token|psk|(?:private|api|access|secret|pre-?shared)[-_ ]?key)`

// whole is for a secret that start matches.
func whole([]byte, int) int { return 0 }

var (
	opening  = regexp.MustCompile(`^(\\*)(["'])`)
	opened   = regexp.MustCompile(`(\\*)"[a-zA-Z][a-zA-Z0-9+.-]*:(?:\\*/){2}$`)
	quotes   = regexp.MustCompile(`(\\*)"`)
	unquoted = regexp.MustCompile(`^(?:\[[^\]]*\]?|(?:[^\s,;}"'\\]|\\+[^"'\\])*)`)
	// A blank ends a URL, as do a quote and the next URL of a list.
	end = regexp.MustCompile(`[\s"]|[,;|]["']?[a-zA-Z][a-zA-Z0-9+.-]*://`)
)

// value is the length of a string with its quotes, or of a word.
func value(text []byte, at int) int {
	rest := text[at:]
	open := opening.FindSubmatchIndex(rest)
	switch {
	case open == nil:
		return len(unquoted.Find(rest))
	case rest[open[4]] == '"':
		return open[1] + closing(rest[open[1]:], open[3])
	}
	for n := open[1]; ; n += 2 { // 'it''s'
		to := bytes.IndexByte(rest[n:], '\'')
		if to < 0 {
			return len(line(rest))
		}
		if n += to; n+1 == len(rest) || rest[n+1] != '\'' {
			return n + 1
		}
	}
}

// closing is where a string ends whose opening quote has so many backslashes before it: behind the quote that has as many,
// but for those that are escaped themselves. One that is cut off ends with its line.
func closing(text []byte, backslashes int) int {
	const most = 64 << 10
	for n := 0; n < most; {
		q := quotes.FindSubmatchIndex(text[n:min(len(text), most)])
		if q == nil {
			break
		}
		if n += q[1]; (q[3]-q[2])%(2*(backslashes+1)) == backslashes {
			return n
		}
	}
	return len(line(text))
}

// userinfo reaches to the last @ of a URL, for a password may have one in it, and slashes: nobody has to be right about
// what they write there.
func userinfo(text []byte, at int) int {
	url := line(text[at:])
	if open := opened.FindSubmatchIndex(text[max(0, at-64):at]); open != nil {
		url = url[:min(len(url), closing(url, open[3]-open[2]))]
	} else if to := end.FindIndex(url); to != nil {
		url = url[:to[0]]
	}
	return bytes.LastIndexByte(url, '@') + 1
}

func line(text []byte) []byte {
	line, _, _ := bytes.Cut(text, []byte{'\n'})
	return line
}

// scrubber takes secrets out of what leaves the host.
type scrubber struct {
	known [][]byte // secrets whose very words are known
}

// newScrubber learns the words of the password file. Nothing else of the host's secrets is read.
func newScrubber(passwordFile string) scrubber {
	var s scrubber
	if passwordFile == "" {
		return s
	}
	data, err := os.ReadFile(passwordFile)
	if err != nil {
		return s
	}
	for word := range bytes.FieldsSeq(data) {
		if len(word) >= 4 { // shorter ones are part of everything
			inJSON, _ := json.Marshal(string(word)) // a string always marshals
			inURL, inQuery := url.PathEscape(string(word)), url.QueryEscape(string(word))
			s.known = append(s.known, word, bytes.Trim(inJSON, `"`), []byte(inURL), []byte(inQuery))
		}
	}
	return s
}

func (s scrubber) scrub(text []byte) []byte {
	for _, word := range s.known {
		text = bytes.ReplaceAll(text, word, []byte(redacted))
	}
	for _, shape := range secrets {
		text = take(text, shape.start, shape.length)
	}
	return text
}

// take puts a mark where start matches and what follows has a length.
func take(text []byte, start *regexp.Regexp, length func([]byte, int) int) []byte {
	var out []byte
	done := 0
	for _, found := range start.FindAllSubmatchIndex(text, -1) {
		keep, to := max(done, found[3]), found[1]
		if to <= done { // within what was taken
			continue
		}
		if to += length(text, to); to == found[3] {
			continue
		}
		out = append(append(out, text[done:keep]...), redacted...)
		done = to
	}
	return append(out, text[done:]...)
}
