package enrol

import (
	"strings"
	"testing"
)

func TestParseToken(t *testing.T) {
	t.Parallel()
	want := NewToken([32]byte{1, 2, 3})
	got, err := ParseToken(want.String())
	if err != nil || got != want {
		t.Errorf("%s is read as %+v, %v", want, got, err)
	}
	if len(want.Secret) < 26 {
		t.Errorf("the secret has %d characters of 5 bits", len(want.Secret))
	}
	text := want.String()
	parts := strings.Split(text, ".")
	for _, bad := range []string{
		"", "ov1", "ov2" + text[3:], text + ".", text + "\n", " " + text, strings.ToUpper(text), parts[0] + ".." + parts[2] + "." + parts[3],
		parts[0] + "." + parts[1] + "a." + parts[2] + "." + parts[3], parts[0] + "." + parts[1] + ".." + parts[3],
		parts[0] + "." + parts[1] + "." + parts[2] + "/../x." + parts[3], parts[0] + "." + parts[1][:51] + "7." + parts[2] + "." + parts[3],
		text[:len(text)/2], strings.Repeat("a", 1<<20),
	} {
		if _, err := ParseToken(bad); err == nil {
			t.Errorf("%.80q is taken for a token", bad)
		} else if strings.Contains(err.Error(), want.Secret) {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken([32]byte{}).String())
	f.Fuzz(func(t *testing.T, text string) {
		if token, err := ParseToken(text); err == nil && token.String() != text {
			t.Errorf("%q is read as %q", text, token)
		}
	})
}
