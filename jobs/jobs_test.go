//go:build linux

package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// three is a cluster of three hosts without Nomad.
func three() *Cluster {
	return &Cluster{Control: "10.77.0.0/16", Release: "9.9", Hosts: func(context.Context) ([]Host, error) {
		return []Host{
			{Name: "h1", Region: "muc", Roles: []string{"server", "edge", "shard"}, Node: "n1"},
			{Name: "h2", Region: "muc", Roles: []string{"shard", "bridge"}, Node: "n2"},
			{Name: "h3", Region: "ber", Roles: []string{"bridge"}, Node: "n3"},
			{Name: "h4", Region: "ber", Roles: []string{"shard"}},
		}, nil
	}}
}

// vars are a spec's variables as the command line of Nomad takes them.
func vars(s Spec) (all []string) {
	for name, v := range s.Vars {
		text, ok := v.(string)
		if !ok {
			b, _ := json.Marshal(v)
			text = string(b)
		}
		all = append(all, name+"="+text)
	}
	return all
}

// TestJobsOfCalls reads the jobs that calls need as Nomad's command line does: what keeps calls alive must be in them.
func TestJobsOfCalls(t *testing.T) {
	c := three()
	shard, err := c.ShardSpec(t.Context(), "muc-1", "muc", "meet.example")
	if err != nil {
		t.Fatal(err)
	}
	bridge, err := c.BridgeSpec(t.Context(), "h3", "meet.example")
	if err != nil {
		t.Fatal(err)
	}
	bridge.Vars["advertise"], bridge.Vars["uplink"], bridge.Vars["ws_url"] = []string{"192.0.2.1"}, 300, "wss://meet.example"
	edge, err := c.EdgeSpec(t.Context(), "muc", "meet.example")
	if err != nil {
		t.Fatal(err)
	}
	edge.Vars["names"] = []string{"meet.example"}
	for _, s := range []Spec{shard, bridge, edge} {
		job := parse(t, s.Kind+".nomad.hcl", vars(s)...)
		if *job.ID != s.ID() || *job.NodePool != "all" || job.Constraints[0].LTarget != "${node.unique.id}" {
			t.Errorf("%s: in pool %s, constraints %v", *job.ID, *job.NodePool, job.Constraints)
		}
		g := job.TaskGroups[0]
		if d := g.Disconnect; d == nil || *d.LostAfter != 12*time.Hour || *d.Replace || *d.Reconcile != "keep_original" {
			t.Errorf("%s: a host that is cut off for a while loses its calls: %+v", s.ID(), d)
		}
		if *g.RestartPolicy.Mode != "delay" || *g.RestartPolicy.Delay != time.Second || !*g.ReschedulePolicy.Unlimited {
			t.Errorf("%s is not started again for ever: %+v, %+v", s.ID(), g.RestartPolicy, g.ReschedulePolicy)
		}
		for _, task := range g.Tasks {
			if task.Driver != "exec" || task.User != "nobody" {
				t.Errorf("%s/%s: driver %s, user %s", s.ID(), task.Name, task.Driver, task.User)
			}
			if task.Name != "edge" && (*task.KillTimeout != 6*time.Hour || task.KillSignal == "") {
				t.Errorf("%s/%s: is killed %v after %q", s.ID(), task.Name, *task.KillTimeout, task.KillSignal)
			}
			for _, tmpl := range task.Templates {
				if *tmpl.ChangeMode != "noop" { // Nomad ends an allocation whose task is just not there for a signal
					t.Errorf("%s/%s: a change of %s may end it", s.ID(), task.Name, *tmpl.DestPath)
				}
			}
			args, _ := json.Marshal(task.Config["args"])
			if regexp.MustCompile(`(?i)password|secret"|room-key|resume-key|"--account"|token`).Match(args) {
				t.Errorf("%s/%s: a secret among the arguments: %s", s.ID(), task.Name, args)
			}
		}
	}
}

// TestVariablesAreTold has every variable of every file say its type and what it is for.
func TestVariablesAreTold(t *testing.T) {
	all, err := files.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		blocks := regexp.MustCompile(`(?s)variable "(\w+)" \{(.*?)\n\}`).FindAllStringSubmatch(string(text), -1)
		if len(blocks) == 0 {
			t.Errorf("%s has no variables", f.Name())
		}
		for _, b := range blocks {
			if !strings.Contains(b[2], "type ") || !strings.Contains(b[2], "description = \"") {
				t.Errorf("%s: variable %s has no type or no description", f.Name(), b[1])
			}
		}
	}
}

func TestSpecs(t *testing.T) {
	c := three()
	s, err := c.ShardSpec(t.Context(), "muc-1", "muc", "meet.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"memory=512", "nodes=[n1, \"n2\"]", "log_level=debug", "domain=a${b}%{c}\"d"} {
		if err := s.Set(v); err != nil {
			t.Fatal(err)
		}
	}
	want := `control = "10.77.0.0/16"
domain = "a$${b}%%{c}\"d"
log_level = "debug"
memory = 512
nodes = ["n1", "n2"]
plenum = "/opt/plenum/bin/plenum-9.9"
region = "muc"
shard = "muc-1"
`
	if d := cmp.Diff(want, s.Variables()); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"memory", "=1", "a b=1"} {
		if err := s.Set(bad); err == nil {
			t.Errorf("--var %s is taken", bad)
		}
	}
	if _, err := c.ShardSpec(t.Context(), "Muc_1", "muc", "x"); !errors.Is(err, ErrName) {
		t.Error(err)
	}
	if _, err := c.ShardSpec(t.Context(), "ber-1", "ber", "x"); !errors.Is(err, ErrNotYet) {
		t.Error(err)
	}
	for _, try := range []func() (Spec, error){
		func() (Spec, error) { return c.ShardSpec(t.Context(), "x", "nowhere", "x") },
		func() (Spec, error) { return c.BridgeSpec(t.Context(), "h1", "x") },
		func() (Spec, error) { return c.BridgeSpec(t.Context(), "h9", "x") },
		func() (Spec, error) { return c.EdgeSpec(t.Context(), "ber", "x") },
	} {
		if _, err := try(); err == nil {
			t.Error("a job without a host to run on")
		}
	}
}

func TestWords(t *testing.T) {
	for _, x := range []struct{ got, want string }{
		{Load{People: 31, Rooms: 4}.verdict(), "moves 31 people in 4 rooms"},
		{Load{People: 1, Rooms: 1}.verdict(), "moves 1 person in 1 room"},
		{Load{}.verdict(), "nobody is on it"},
		{eta(Load{Rooms: 10}, Load{Rooms: 5}, 20*time.Second), ", about 20s more"},
		{eta(Load{Rooms: 10}, Load{Rooms: 10}, 20*time.Second), ""},
		{eta(Load{Rooms: 10}, Load{}, 20*time.Second), ""},
		{(&Plan{Spec: Spec{Kind: Shard}, Unknown: []string{"h1", "h2"}}).verdict(), "who is on it nobody knows, for it does not answer on h1, h2"},
		{age(59 * time.Second), "59s"}, {age(59 * time.Minute), "59m"}, {age(47*time.Hour + 5*time.Minute), "47h5m"}, {age(49 * time.Hour), "2d1h"},
		{short(" a \n b "), "a b"},
		{short(""), "nothing"},
		{short(strings.Repeat("é", 70)), strings.Repeat("é", 59) + "…"},
	} {
		if x.got != x.want {
			t.Errorf("%q, want %q", x.got, x.want)
		}
	}
	m, err := values(strings.NewReader("# HELP a b\njitsi_jicofo_conferences 3\njitsi_jicofo_participants_current 1e1\nx{y=\"z\"} 4\nplenum_info{release=\"9.9-a\"} 1\nplenum_drain_stage 1\nodd\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := loadOf(m), (Load{Rooms: 3, People: 10, Drain: "draining"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if r := releaseOf(m); r != "9.9-a" || len(m) != 4 {
		t.Errorf("release %q of %v", r, m)
	}
	for _, p := range []struct {
		Plan
		hurts bool
	}{
		{Plan{Spec: Spec{Kind: Shard}, Stops: 1, Harm: Load{People: 1}}, true}, {Plan{Spec: Spec{Kind: Shard}, Stops: 1}, false},
		{Plan{Spec: Spec{Kind: Bridge}, Stops: 1, Unknown: []string{"h1"}}, true}, {Plan{Spec: Spec{Kind: Shard}, Harm: Load{People: 1}}, false},
		{Plan{Spec: Spec{Kind: Edge}, Stops: 1}, true}, {Plan{Spec: Spec{Kind: Edge}}, false},
	} {
		if p.Plan.hurts() != p.hurts {
			t.Errorf("%+v hurts: %v", p.Plan, !p.hurts)
		}
	}
	if !slices.Equal(sorted(map[string]int{"b": 1, "a": 2}), []string{"a", "b"}) {
		t.Error("not sorted")
	}
}
