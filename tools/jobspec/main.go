// Command jobspec parses job files as Nomad's own command line does and prints the jobs as JSON, without a server. It
// is a module of its own, because the parser comes with Nomad.
//
//	jobspec [-var name=value]… file.nomad.hcl
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/hashicorp/nomad/jobspec2"
)

// values collects -var flags.
type values []string

func (v *values) String() string { return strings.Join(*v, " ") }

func (v *values) Set(s string) error {
	*v = append(*v, s)
	return nil
}

func main() {
	var vars values
	flag.Var(&vars, "var", "`name=value` of a variable, repeatable")
	flag.Parse()
	if err := run(flag.Arg(0), vars); err != nil {
		fmt.Fprintln(os.Stderr, "jobspec:", err)
		os.Exit(1)
	}
}

func run(path string, vars values) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	job, err := jobspec2.ParseWithConfig(&jobspec2.ParseConfig{Path: path, Body: body, ArgVars: vars, Strict: true, AllowFS: true})
	if err != nil {
		return err
	}
	job.Canonicalize()
	return json.NewEncoder(os.Stdout).Encode(job)
}
