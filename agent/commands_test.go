//go:build linux

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"plenum/agent/host"
	"plenum/agent/join"
)

// A command that is interrupted says so, with the status that shells give it, and never that it went well.
func TestInterrupted(t *testing.T) {
	for name, test := range map[string]struct {
		stop bool
		err  error
		want string
		code int
	}{
		"interrupted":       {true, context.Canceled, "interrupted: plenum join goes on where it was when it is run again", 130},
		"with a word to it": {true, fmt.Errorf("this host stays: %w", context.Canceled), "interrupted: this host stays", 130},
		"another error":     {true, errors.New("no"), "no", 1},
		"of another":        {false, context.Canceled, "context canceled", 1},
	} {
		ctx, stop := context.WithCancel(t.Context())
		c := &cobra.Command{Use: "join", RunE: func(*cobra.Command, []string) error {
			if test.stop {
				stop()
			}
			return test.err
		}}
		root := &cobra.Command{Use: "plenum", SilenceErrors: true, SilenceUsage: true}
		finish(c)
		root.AddCommand(c)
		root.SetArgs([]string{"join"})
		err := root.ExecuteContext(ctx)
		stop()
		code := 1
		var coded interface{ ExitCode() int }
		if errors.As(err, &coded) {
			code = coded.ExitCode()
		}
		if err == nil || err.Error() != test.want || code != test.code || test.code == 130 && errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, %d", name, err, code)
		}
	}
}

// A token is read however it was pasted.
func TestTokenArgument(t *testing.T) {
	t.Setenv("PLENUM_TOKEN", "plenum-environment")
	for name, test := range map[string]struct {
		args  []string
		input string
		want  string
	}{
		"none":             {nil, "", "plenum-environment"},
		"whole":            {[]string{"plenum-abc"}, "", "plenum-abc"},
		"in pieces":        {[]string{"plenum-", "a", "bc"}, "", "plenum-abc"},
		"standard input":   {[]string{"-"}, "plenum-a\n bc\n", "plenum-abc"},
		"longer than ever": {[]string{"-"}, "plenum-" + strings.Repeat("a", 5000), "plenum-" + strings.Repeat("a", 5000)},
	} {
		c := &cobra.Command{}
		c.SetIn(strings.NewReader(test.input))
		got, err := tokenArgument(c, test.args)
		if err != nil || strings.Join(strings.Fields(got), "") != test.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// With -o json every command writes JSON, line by line: plans as arrays, what it says as objects.
func TestJSONLines(t *testing.T) {
	var b bytes.Buffer
	c := &Command{Out: &b, JSON: true}
	c.say("%6.1fs  %s", 1.5, "start Consul")
	check(t, c.printSteps([]Step{{Kind: "service", What: "start Consul", Unit: "plenum-consul"}}))
	c.Plan = true
	check(t, c.printSteps(nil))
	d := json.NewDecoder(&b)
	var said struct{ Text string }
	var plan struct{ Plan []Step }
	var none []Step
	if err := errors.Join(d.Decode(&said), d.Decode(&plan), d.Decode(&none)); err != nil || said.Text != "1.5s  start Consul" || plan.Plan[0].Unit != "plenum-consul" || none == nil {
		t.Errorf("%+v %+v %v: %v", said, plan, none, err)
	}
}

// A second init may leave out what the first was told, and cannot change it.
func TestFoundingAgrees(t *testing.T) {
	const ada = "ada=age1fsrcax9uz6tswd739ufy3ncc7p7e058d0svj9md9etqx75l9r5aq7twq48"
	old := Founding{Cluster: "ffm", Region: "ber", Roles: []string{"server", "bridge"}, Admins: []string{ada}}
	check(t, old.validate(nil))
	for want, f := range map[string]Founding{
		"":          {},
		"again":     {Cluster: "ffm", Region: "ber", Roles: []string{"bridge"}, Control: DefaultControl, Admins: []string{ada}},
		"--cluster": {Cluster: "plenum"}, "--region": {Region: "muc"}, "--roles": {Roles: []string{"edge"}},
		"--media": {Media: netip.MustParsePrefix("10.99.0.0/16")}, "plenum admin add": {Admins: []string{"bob=age1x"}},
	} {
		switch err := f.agrees(old); {
		case want == "" || want == "again":
			if err != nil {
				t.Errorf("%s: %v", want, err)
			}
		case err == nil || !strings.Contains(err.Error(), want):
			t.Errorf("%s: %v", want, err)
		}
	}
	bad := Founding{Region: "ber", Admins: []string{"ada=age1nobody"}}
	if err := bad.validate(nil); err == nil || !strings.Contains(err.Error(), "age-keygen") {
		t.Errorf("an admin whom nobody can write to: %v", err)
	}
}

// A generation that the catalog tells is asked for once, for its word is a hint.
func TestGeneration(t *testing.T) {
	var g generation
	word := func(n int) []byte { return marshal(join.Public{Generation: n}) }
	for i, test := range []struct {
		word []byte
		have int
		want bool
	}{{word(1), 1, false}, {word(2), 1, true}, {word(2), 1, false}, {word(2), 2, false}, {word(3), 2, true}, {word(1), 3, false}, {[]byte("x"), 3, false}} {
		if got := g.newer(test.word, test.have); got != test.want {
			t.Errorf("%d: %t", i, got)
		}
	}
}

// An edge gets its packages, with their units masked, and gives back those that were not there before it came.
func TestPack(t *testing.T) {
	for name, mine := range map[string]bool{"a bare host": false, "a host that had one": true} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			h, err := host.Open(root)
			check(t, err)
			for _, dir := range []string{stateDir, "usr/sbin", "usr/bin"} {
				check(t, h.Mkdir(dir, 0o755))
			}
			if mine {
				check(t, h.Write("usr/sbin/haproxy", nil, 0o755))
			}
			dir := t.TempDir()
			asked := filepath.Join(dir, "asked")
			check(t, os.WriteFile(filepath.Join(dir, "apt-get"), []byte(`#!/bin/sh
for last; do :; done
echo $1 $last >> `+asked+`
case $last in haproxy) p=`+h.Path("usr/sbin/haproxy")+`;; coturn) p=`+h.Path("usr/bin/turnserver")+`;; esac
case $1 in install) : > $p;; remove) rm $p;; esac
`), 0o755))
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			w := &work{view: example("edge"), hand: hand{host: h, say: func(string, ...any) {}}}
			if steps := w.packageSteps(h); steps != nil {
				t.Errorf("without a package manager: %v", what(steps))
			}
			w.facts.Apt = true
			want := []string{"mask haproxy.service", "install haproxy", "mask coturn.service", "install coturn"}
			if mine {
				want = want[2:]
			}
			if got := what(w.packageSteps(h)); !slices.Equal(got, want) {
				t.Errorf("the plan is %v, want %v", got, want)
			}
			first := w.pack(t.Context())
			if w.facts.Apt = true; first != len(want)/2 || w.pack(t.Context()) != 0 || len(w.packageSteps(h)) > 0 {
				t.Errorf("%d packages at first, then more", first)
			}
			for unit, masked := range map[string]bool{"haproxy": !mine, "coturn": true} {
				if to, _ := os.Readlink(h.Path("etc/systemd/system", unit+".service")); (to == os.DevNull) != masked {
					t.Errorf("%s is masked: %q", unit, to)
				}
			}
			check(t, w.unpack(t.Context()))
			if left := filesBelow(t, h.Path("etc")); len(left) > 0 {
				t.Errorf("left are %v", left)
			}
			log, _ := os.ReadFile(asked)
			if got, want := strings.Contains(string(log), "remove haproxy"), !mine; got != want || !strings.Contains(string(log), "remove coturn") {
				t.Errorf("the package manager was asked\n%s", log)
			}
		})
	}
	v := example("edge")
	if v.facts.Apt, v.facts.Needrestart = true, true; len(v.helpers()) != 2 {
		t.Error("Debian's helpers are not told")
	}
	bridge := example("bridge")
	if bridge.facts.Apt = true; bridge.packages() != nil {
		t.Error("a bridge gets packages of edges")
	}
}

// Kernel settings go back to what they were, unless somebody has changed them since.
func TestSysctlsGoBack(t *testing.T) {
	h, err := host.Open(t.TempDir())
	check(t, err)
	check(t, h.Mkdir(stateDir, 0o755))
	w := &hand{host: h, say: func(string, ...any) {}}
	all := []Sysctl{{Key: "net.a", Min: 100}, {Key: "net.b", Min: 100}, {Key: "net.c", Min: 100}}
	for _, key := range []string{"net.a", "net.b"} {
		check(t, h.SetSysctl(key, "7"))
	}
	for range 2 {
		for _, s := range all {
			check(t, w.step(t.Context(), Desired{}, Step{sysctl: &s}))
		}
	}
	check(t, h.SetSysctl("net.b", "5000"))
	check(t, w.restoreSysctls(all))
	for key, want := range map[string]string{"net.a": "7", "net.b": "5000", "net.c": "100"} {
		if got, _ := h.Sysctl(key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
}
