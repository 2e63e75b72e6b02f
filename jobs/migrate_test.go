//go:build linux

package jobs

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

const converter = "../examples/migrate-from-docker-jitsi-meet/"

// convert runs the script on a .env and returns what it says, and its exit status.
func convert(t *testing.T, env, dir string) (string, int) {
	t.Helper()
	cmd := exec.Command(converter+"convert", env, dir)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestMigrate converts the .env of a deployment: jobs take the variables, and plenum with the configuration serves the
// rooms under the names that they had, and tells clients what they were told.
func TestMigrate(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	dir := t.TempDir()
	if out, status := convert(t, converter+"testdata/env", dir); status != 0 {
		t.Fatalf("status %d: %s", status, out)
	}
	report := read(t, filepath.Join(dir, "REPORT"))
	for _, want := range []string{"https://meet.example/ROOM", "Unknown to this script\n  MY_OWN_THING\n", "plenum shard add muc-east-1 --region muc-east --domain meet.example", "plenum edge add muc-east --name meet.example --name www.meet.example --email admin@meet.example"} {
		if !strings.Contains(report, want) {
			t.Errorf("the report does not say %q:\n%s", want, report)
		}
	}
	for line := range strings.Lines(read(t, converter+"testdata/env")) { // nothing is left out in silence
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if ok && !strings.HasPrefix(name, "#") && value != "" && !strings.Contains(report, "  "+name) {
			t.Errorf("the report does not name %s", name)
		}
		if strings.HasSuffix(name, "PASSWORD") && value != "" && strings.Contains(report, value) {
			t.Errorf("the report shows %s", name)
		}
	}
	if i, err := os.Stat(filepath.Join(dir, "plenum.hcl")); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("others may read passwords: %v, %v", i, err)
	}

	for file, more := range map[string][]string{
		"shard":  {`nodes=["a"]`, "control=10.77.0.0/16"},
		"bridge": {"host=h1", "node=a"},
		"edge":   {`nodes=["a"]`, "control=10.77.0.0/16"},
		"turn":   {`nodes=["a"]`, `overlays=["10.77.0.0/16"]`},
	} {
		vars := more
		lines := bufio.NewScanner(strings.NewReader(read(t, filepath.Join(dir, file+".vars.hcl"))))
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), " = ")
			if !strings.HasPrefix(value, "[") {
				value = strings.Trim(value, `"`)
			}
			vars = append(vars, name+"="+value)
		}
		job := parse(t, file+".nomad.hcl", vars...)
		if name := map[string]string{"bridge": "bridge-h1", "shard": "shard-muc-east-1"}[file]; name != "" && *job.ID != name {
			t.Errorf("%s is job %s", file, *job.ID)
		}
	}

	build(t, dir)
	commandsExist(t, dir, filepath.Join(dir, "REPORT"), converter+"README.md", converter+"variables", "../examples/laptop/README.md",
		"../examples/three-hosts-two-regions/README.md", "monitoring/README.md", "monitoring/rules.yml")
	text := strings.Replace(read(t, filepath.Join(dir, "plenum.hcl")), `":10000"`, `"127.0.0.1:0"`, 1)
	write(t, filepath.Join(dir, "plenum.hcl"), text)
	p := startPlenum(t, dir, "dev", "dev", "--config", filepath.Join(dir, "plenum.hcl"), "--http", "127.0.0.1:0", "--xmpp", "127.0.0.1:0", "--bridge-http", "127.0.0.1:0")
	get := func(path string) string {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		res, err := client.Get(p.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %v", path, res.Status, err)
		}
		return string(b)
	}
	get("/WeeklyMeeting")
	get("/school/WeeklyMeeting")
	config := strings.Join(strings.Fields(get("/config.js")), " ")
	for _, want := range []string{`"startAudioMuted": 10`, `"prejoinConfig": { "enabled": false, "hideExtraJoinButtons": [ "invite", "by-phone" ] }`, `"defaultLanguage": "de"`,
		`"toolbarButtons": [ "microphone", "camera" ]`, `"ideal": 1280`, `"domain": "meet.example"`} {
		if !strings.Contains(config, want) {
			t.Errorf("config.js does not say %s: %s", want, config)
		}
	}
}

// commandsExist looks for commands of plenum in texts, and whether plenum has them with the flags that they are given.
func commandsExist(t *testing.T, dir string, paths ...string) {
	t.Helper()
	found := 0
	for _, path := range paths {
		for _, m := range regexp.MustCompile("(?m)plenum ((?:init|join|leave|doctor|status|token|host|unseal|shard|bridge|edge|room|dev|run|probe)\\b[^\n`\";,:#|)]*)").FindAllStringSubmatch(read(t, path), -1) {
			words := strings.Fields(m[1])
			for i, w := range words {
				words[i] = strings.TrimRight(w, ".")
			}
			args := words[:1]
			if len(words) > 1 && slices.Contains([]string{"token", "host", "shard", "bridge", "edge", "room", "run"}, words[0]) {
				args = words[:2]
			}
			out, err := exec.Command(filepath.Join(dir, "plenum"), append(slices.Clone(args), "--help")...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "Usage:\n  plenum "+strings.Join(args, " ")) {
				t.Errorf("%s: there is no plenum %s: %s", path, strings.Join(args, " "), out)
			}
			for _, w := range words {
				if flag, _, _ := strings.Cut(w, "="); strings.HasPrefix(flag, "--") && !strings.Contains(string(out), flag+" ") {
					t.Errorf("%s: plenum %s has no %s", path, strings.Join(args, " "), flag)
				}
			}
			found++
		}
	}
	if found < 30 {
		t.Errorf("only %d commands were found", found)
	}
}

// TestMigrateEach converts single settings.
func TestMigrateEach(t *testing.T) {
	for _, c := range []struct {
		env    string
		status int
		says   string // by the script
		file   string
		has    string
	}{
		{env: "TZ=UTC", status: 1, says: "PUBLIC_URL is not set"},
		{env: "PUBLIC_URL=meet.example", status: 1, says: "want https://NAME"},
		{env: "what is this", status: 1, says: ":1: want NAME=VALUE"},
		{env: "PUBLIC_URL=https://a.example\nX='open", status: 1, says: "a quote that does not end"},
		{env: "PUBLIC_URL=https://a.example\nX=${HOME}", status: 1, says: ":2: X refers to another variable"},
		{env: "PUBLIC_URL=https://a.example\nJVB_PORT=10000; rm", status: 1, says: "JVB_PORT: want a number"},
		{env: "PUBLIC_URL=https://a.example\nENABLE_P2P=perhaps", status: 1, says: "ENABLE_P2P: want 1 or 0"},
		{env: "PUBLIC_URL=https://a.example\nENABLE_AUTH=1\nAUTH_TYPE=jwt", status: 2, says: "ENABLE_AUTH", file: "REPORT", has: "DECIDE"},
		{env: "PUBLIC_URL=https://a.example\nJWT_APP_SECRET=abc", status: 2, file: "REPORT", has: "everybody may open a room"},
		{env: "PUBLIC_URL=https://a.example\nENABLE_AUTH=false", file: "REPORT", has: "off, as here"},
		{env: "PUBLIC_URL=https://a.example:8443/", file: "REPORT", has: "https://a.example:8443/ROOM"},
		{env: "PUBLIC_URL=https://a.example:8443", file: "edge.vars.hcl", has: "https = 8443\nacme = \"\"\n"},
		{env: "PUBLIC_URL=https://a.example\nENABLE_LETSENCRYPT=1\nLETSENCRYPT_USE_STAGING=1", file: "edge.vars.hcl", has: `acme = "https://acme-staging-v02.`},
		{env: "PUBLIC_URL=https://a.example\nDISABLE_HTTPS=1\nHTTP_PORT=8000", file: "edge.vars.hcl", has: "https = 0\nhttp = 8000\n"},
		{env: "PUBLIC_URL=https://a.example\nLETSENCRYPT_DOMAIN=b.example", file: "edge.vars.hcl", has: `names = ["a.example", "b.example"]`},
		{env: "PUBLIC_URL=https://a.example\nDOCKER_HOST_ADDRESS=192.0.2.1 # old", file: "bridge.vars.hcl", has: `advertise = ["192.0.2.1"]`},
		{env: "PUBLIC_URL=https://a.example\nJVB_PORT=20000", file: "REPORT", has: "takes UDP port 10000, not 20000"},
		{env: "PUBLIC_URL=https://a.example\nENABLE_SIMULCAST=0", file: "plenum.hcl", has: "disableSimulcast = true"},
		{env: "PUBLIC_URL=https://a.example\nJVB_AUTH_PASSWORD='$(touch evil)`touch evil`\"'", file: "plenum.hcl", has: "account \"jvb\" { password = \"$(touch evil)`touch evil`\\\"\" }"},
		{env: "PUBLIC_URL=https://a.example\nJIGASI_XMPP_USER=sip\nJIGASI_XMPP_PASSWORD=x", file: "plenum.hcl", has: `account "sip" { password = "x" }`},
		{env: "PUBLIC_URL=https://a.example\nLDAP_BASE=x\nNGINX_WORKER_PROCESSES=4", file: "REPORT", has: "see LDAP_URL"},
	} {
		dir := t.TempDir()
		env := filepath.Join(dir, "env")
		write(t, env, c.env+"\n")
		out, status := convert(t, env, filepath.Join(dir, "out"))
		if status != c.status || !strings.Contains(out, c.says) {
			t.Errorf("%q: status %d, %s", c.env, status, out)
			continue
		}
		if c.file != "" {
			if text := read(t, filepath.Join(dir, "out", c.file)); !strings.Contains(text, c.has) {
				t.Errorf("%q: %s is %s", c.env, c.file, text)
			}
		} else if all, _ := filepath.Glob(filepath.Join(dir, "out", "*")); len(all) > 0 {
			t.Errorf("%q: it wrote %v", c.env, all)
		}
		if _, err := os.Stat("evil"); err == nil {
			os.Remove("evil")
			t.Fatalf("%q was executed", c.env)
		}
	}
}
