package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeApt puts a program apt-get before all others that notes what it is asked, does what script says, and makes and
// removes the program of a package.
func fakeApt(t *testing.T, h *Host, script string) (asked func() []string) {
	t.Helper()
	dir := t.TempDir()
	notes := filepath.Join(dir, "asked")
	text := "#!/bin/sh\necho \"$*\" >> " + notes + "\n" + script + `
case $1 in
install) mkdir -p ` + h.Path("usr/sbin") + `; : > ` + h.Path("usr/sbin/haproxy") + `;;
remove) rm -f ` + h.Path("usr/sbin/haproxy") + `;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() []string {
		b, _ := os.ReadFile(notes)
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
}

// A package's units are masked before it is there, so that they never start by themselves, and its own masks go with it.
func TestPackage(t *testing.T) {
	install := "install -y --no-install-recommends haproxy"
	for name, test := range map[string]struct {
		script string
		before func(t *testing.T, unit string)
		asked  []string
		fails  string
	}{
		"installed":  {asked: []string{install}},
		"old lists":  {script: `[ "$1" = install ] && [ ! -e "$0.updated" ] && exit 100; [ "$1" = update ] && : > "$0.updated"`, asked: []string{install, "update", install}},
		"no network": {script: "echo no route >&2; exit 100", asked: []string{install, "update"}, fails: "no route"},
		"a unit of the donor's": {before: func(t *testing.T, unit string) {
			if err := os.WriteFile(unit, []byte("[Service]\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, asked: []string{""}, fails: "move it away"},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t)
			unit := h.Path(unitDir, "haproxy.service")
			if err := os.MkdirAll(filepath.Dir(unit), 0o755); err != nil {
				t.Fatal(err)
			}
			if test.before != nil {
				test.before(t, unit)
			}
			asked := fakeApt(t, h, `[ "$1" != install ] || [ "$(readlink `+unit+`)" = /dev/null ] || exit 99`+"\n"+test.script)
			err := h.InstallPackage(t.Context(), HAProxy)
			if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) {
				t.Fatalf("installed: %v", err)
			}
			if got := asked(); !slices.Equal(got, test.asked) {
				t.Errorf("asked %q, want %q", got, test.asked)
			}
			if err != nil {
				return
			}
			if target, err := os.Readlink(unit); err != nil || target != os.DevNull || !h.There(HAProxy) {
				t.Errorf("the unit is %q, %v; there: %t", target, err, h.There(HAProxy))
			}
			if err := h.InstallPackage(t.Context(), HAProxy); err != nil {
				t.Errorf("again: %v", err)
			}
			if err := h.RemovePackage(t.Context(), HAProxy); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(unit); err == nil || h.There(HAProxy) {
				t.Error("something is left of it")
			}
		})
	}
}
