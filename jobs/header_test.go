//go:build linux

package jobs

import (
	"regexp"
	"testing"
)

// TestHeaders runs what each file says of itself as Nomad's command line would: those variables are enough.
func TestHeaders(t *testing.T) {
	all, err := files.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		command := regexp.MustCompile(`(?m)^#   nomad job run (.*) ` + regexp.QuoteMeta(f.Name()) + `$`).FindStringSubmatch(read(t, f.Name()))
		if command == nil {
			t.Errorf("%s does not say how it is run", f.Name())
			continue
		}
		var vars []string
		for _, v := range regexp.MustCompile(`-var (?:'([^']*)'|(\S+))`).FindAllStringSubmatch(command[1], -1) {
			vars = append(vars, v[1]+v[2])
		}
		if job := parse(t, f.Name(), vars...); job.ID == nil {
			t.Errorf("%s: no job of %q", f.Name(), vars)
		}
	}
}
