// Package jobs runs shards, bridges and edges as jobs of Nomad: it fills in the job files, says beforehand what a change
// would do and to whom, submits, drains, lists. The files are plain ones that Nomad's own command line takes as well. It
// knows the cluster through Nomad's API alone; who the hosts are, its caller tells it.
package jobs

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"
)

//go:embed *.nomad.hcl
var files embed.FS

// A Host is one that has joined.
type Host struct {
	Name, Region string
	Roles        []string
	Node         string // id of its Nomad node, as the join service recorded it; empty: not seen yet
}

// A Cluster is where jobs run.
type Cluster struct {
	Nomad   *api.Client
	Control string // prefix of the control network
	Release string // of the binary that jobs run, which hosts have at a path of its own
	// Hosts lists the hosts. What a node says of itself is not enough for jobs that get secrets.
	Hosts func(ctx context.Context) ([]Host, error)
}

// Kinds of jobs: the beginning of the job's id, the name of its file and of its first task.
const (
	Shard  = "shard"
	Bridge = "bridge"
	Edge   = "edge"
)

// ErrName is returned for names that are none.
var ErrName = errors.New("want a-z, 0-9 and inner hyphens, at most 40 of them")

// ErrNotYet is returned for hosts that have just joined.
var ErrNotYet = errors.New("there is no node of it yet; try again in some seconds")

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// A Spec is a job file with its variables.
type Spec struct {
	Kind, Name string
	Vars       map[string]any // string, int or []string

	Secrets []string // Variables, beside its own, that the job may read
}

// ID is the job's.
func (s Spec) ID() string { return s.Kind + "-" + s.Name }

// Source is the job file.
func (s Spec) Source() (string, error) {
	b, err := files.ReadFile(s.Kind + ".nomad.hcl")
	return string(b), err
}

// Variables are the values as a file of variables has them.
func (s Spec) Variables() string {
	var b strings.Builder
	for _, name := range sorted(s.Vars) {
		switch v := s.Vars[name].(type) {
		case []string:
			quoted := make([]string, len(v))
			for i, e := range v {
				quoted[i] = quote(e)
			}
			fmt.Fprintf(&b, "%s = [%s]\n", name, strings.Join(quoted, ", "))
		case string:
			fmt.Fprintf(&b, "%s = %s\n", name, quote(v))
		default:
			fmt.Fprintf(&b, "%s = %v\n", name, v)
		}
	}
	return b.String()
}

// quote writes a text as HCL does: without templates in it.
func quote(s string) string {
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(strconv.Quote(s))
}

func sorted[V any](m map[string]V) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// Set takes name=value as the command line has it: lists in brackets, numbers bare, everything else a text.
func (s *Spec) Set(assignment string) error {
	name, value, ok := strings.Cut(assignment, "=")
	if !ok || !regexp.MustCompile(`^[a-z_]+$`).MatchString(name) {
		return fmt.Errorf("--var %s: want NAME=VALUE", assignment)
	}
	if inner, ok := strings.CutPrefix(value, "["); ok && strings.HasSuffix(inner, "]") {
		list := []string{}
		for _, e := range strings.Split(strings.TrimSuffix(inner, "]"), ",") {
			if e = strings.Trim(e, ` "`); e != "" {
				list = append(list, e)
			}
		}
		s.Vars[name] = list
	} else if n, err := strconv.Atoi(value); err == nil {
		s.Vars[name] = n
	} else {
		s.Vars[name] = value
	}
	return nil
}

// job has Nomad read the file, which thereby is what its own command line would submit.
func (c *Cluster) job(s Spec) (*api.Job, error) {
	source, err := s.Source()
	if err != nil {
		return nil, err
	}
	job, err := c.Nomad.Jobs().ParseHCLOpts(&api.JobsParseRequest{JobHCL: source, Variables: s.Variables(), Canonicalize: true})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.ID(), err)
	}
	return job, nil
}

// binary is where hosts have this release.
func (c *Cluster) binary() string { return "/opt/plenum/bin/plenum-" + c.Release }

// nodes are those of the hosts with a role, in one region or in all.
func (c *Cluster) nodes(ctx context.Context, role, region string) ([]string, error) {
	hosts, err := c.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	var all, waiting []string
	for _, h := range hosts {
		if !slices.Contains(h.Roles, role) || h.Region != region {
			continue
		}
		if h.Node == "" {
			waiting = append(waiting, h.Name)
			continue
		}
		all = append(all, h.Node)
	}
	switch {
	case len(all) > 0:
		return all, nil
	case len(waiting) > 0:
		return nil, fmt.Errorf("%s: %w", strings.Join(waiting, ", "), ErrNotYet)
	}
	return nil, fmt.Errorf("no host in %s has the role %s: plenum token create --region %s --roles %s, and join one", region, role, region, role)
}

// ShardSpec is the job of a shard.
func (c *Cluster) ShardSpec(ctx context.Context, name, region, domain string) (Spec, error) {
	if !validName.MatchString(name) {
		return Spec{}, fmt.Errorf("shard %q: %w", name, ErrName)
	}
	nodes, err := c.nodes(ctx, Shard, region)
	return Spec{Kind: Shard, Name: name, Secrets: []string{shardsVariable, accountsVariable, turnVariable + region}, Vars: map[string]any{"shard": name, "region": region, "nodes": nodes,
		"domain": domain, "control": c.Control, "plenum": c.binary()}}, err
}

// EdgeSpec is the job of a region's edges.
func (c *Cluster) EdgeSpec(ctx context.Context, region, domain string) (Spec, error) {
	if !validName.MatchString(region) {
		return Spec{}, fmt.Errorf("region %q: %w", region, ErrName)
	}
	nodes, err := c.nodes(ctx, Edge, region)
	return Spec{Kind: Edge, Name: region, Secrets: []string{edgesVariable}, Vars: map[string]any{"region": region, "nodes": nodes, "domain": domain,
		"control": c.Control, "plenum": c.binary()}}, err
}

// BridgeSpec is the job of a host's bridge.
func (c *Cluster) BridgeSpec(ctx context.Context, host, domain string) (Spec, error) {
	hosts, err := c.Hosts(ctx)
	if err != nil {
		return Spec{}, err
	}
	i := slices.IndexFunc(hosts, func(h Host) bool { return h.Name == host })
	switch {
	case i < 0:
		return Spec{}, fmt.Errorf("no host %s has joined: plenum host list", host)
	case !slices.Contains(hosts[i].Roles, Bridge):
		return Spec{}, fmt.Errorf("%s has not the role bridge, but %s", host, strings.Join(hosts[i].Roles, ", "))
	case hosts[i].Node == "":
		return Spec{}, fmt.Errorf("%s: %w", host, ErrNotYet)
	}
	return Spec{Kind: Bridge, Name: host, Vars: map[string]any{"host": host, "node": hosts[i].Node, "region": hosts[i].Region, "domain": domain,
		"plenum": c.binary()}}, nil
}

// Variables of Nomad.
const (
	shardsVariable   = "plenum/shards"    // domain, room_key, resume_key
	edgesVariable    = "plenum/edges"     // secret
	accountsVariable = "plenum/accounts"  // made by the join service
	turnVariable     = "nomad/jobs/turn-" // secret; an operator makes it for a region's TURN servers
)

// Domain is the cluster's, kept with the first job; an empty one asks for it.
func (c *Cluster) Domain(ctx context.Context, domain string) (string, error) {
	v, _, err := c.Nomad.Variables().Peek(shardsVariable, (&api.QueryOptions{}).WithContext(ctx))
	switch {
	case err != nil:
		return "", err
	case v == nil && domain == "":
		return "", errors.New("--domain DOMAIN is missing: the cluster's first job fixes the name of its XMPP domain, such as meet.example")
	case v == nil:
		return domain, nil
	case domain != "" && domain != v.Items["domain"]:
		return "", fmt.Errorf("--domain %s: the domain of this cluster is %s", domain, v.Items["domain"])
	}
	return v.Items["domain"], nil
}

// allow makes the secrets that jobs of a kind have in common, unless they are there, and lets the job read them.
func (c *Cluster) allow(ctx context.Context, s Spec) error {
	w := (&api.WriteOptions{}).WithContext(ctx)
	domain, _ := s.Vars["domain"].(string)
	for path, items := range map[string]api.VariableItems{
		shardsVariable: {"domain": domain, "room_key": rand.Text(), "resume_key": rand.Text()},
		edgesVariable:  {"secret": rand.Text()},
	} {
		if path != shardsVariable && !slices.Contains(s.Secrets, path) {
			continue
		}
		v := api.NewVariable(path)
		v.Items = items
		_, _, err := c.Nomad.Variables().CheckedCreate(v, w)
		var there api.ErrCASConflict
		if err != nil && !errors.As(err, &there) {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if len(s.Secrets) == 0 {
		return nil
	}
	var rules strings.Builder
	rules.WriteString("namespace \"default\" {\n  variables {\n")
	for _, path := range s.Secrets {
		fmt.Fprintf(&rules, "    path %q { capabilities = [\"read\"] }\n", path)
	}
	rules.WriteString("  }\n}\n")
	_, err := c.Nomad.ACLPolicies().Upsert(&api.ACLPolicy{Name: "plenum-" + s.ID(), Description: "what " + s.ID() + " may read", Rules: rules.String(),
		JobACL: &api.JobACL{Namespace: "default", JobID: s.ID()}}, w)
	if err != nil && !strings.Contains(err.Error(), "ACL support disabled") {
		return fmt.Errorf("policy of %s: %w", s.ID(), err)
	}
	return nil
}
