package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// TestConfigRooms has every command read one file of a host that has all rooms: its own block, and none of another's.
func TestConfigRooms(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plenum.hcl")
	text := `
		agent { host = "ber-1" }
		overlay { anything = true }
		signaling {
			region  = "shards"
			shard   = "ber-1"
			account = ["ann:1"]
		}
		bridge {
			region  = "bridges"
			account = "bridges:secret"
		}
		edge {
			region = "edges"
			names  = ["meet.example", "ber.meet.example"]
		}
		log { level = "error" }
		account "focus" { password = "2" }`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var p processOptions
	var s shardOptions
	var k clusterOptions
	var b bridgeOptions
	var m memberOptions
	var e edgeOptions
	for _, c := range []struct {
		flags    []func(*pflag.FlagSet)
		settings []setting
		got      func() []string
		want     string
	}{
		{[]func(*pflag.FlagSet){s.flags, k.flags}, slices.Concat(shardSettings, clusterSettings), func() []string { return append(s.accounts, k.region, k.shard) }, "ann:1 focus:2 shards ber-1"},
		{[]func(*pflag.FlagSet){b.flags, m.flags}, slices.Concat(bridgeSettings, memberSettings), func() []string { return []string{m.account, m.region} }, "bridges:secret bridges"},
		{[]func(*pflag.FlagSet){e.flags}, edgeSettings, func() []string { return append(e.proxy.Names, e.proxy.Region) }, "meet.example ber.meet.example edges"},
	} {
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		p.flags(flags, loopback)
		for _, add := range c.flags {
			add(flags)
		}
		if err := configure(flags, file, slices.Concat(c.settings, processSettings)); err != nil {
			t.Error(err)
		} else if diff := cmp.Diff(strings.Fields(c.want), c.got()); diff != "" || p.logLevel != "error" {
			t.Errorf("logs %s; %s", p.logLevel, diff)
		}
	}
}

// TestConfigPrecedence: a flag wins over the environment, that over the file, that over the default, for every kind of value.
func TestConfigPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plenum.hcl")
	text := `edge {
		region   = "file"
		names    = ["file.example", "too.example"]
		capacity = 1
		ramp     = "1s"
	}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		where       string
		file        string
		environment bool
		arguments   []string
		want        string
	}{
		{where: "default", want: " [] 0 0s :80"},
		{where: "file", file: file, want: "file [file.example too.example] 1 1s :80"},
		{where: "environment", file: file, environment: true, want: "environment [environment.example] 2 2s :80"},
		{where: "environment alone", environment: true, want: "environment [environment.example] 2 2s :80"},
		{where: "flag", file: file, environment: true, arguments: []string{"--region=flag", "--name=flag.example", "--capacity=3", "--ramp=3s"}, want: "flag [flag.example] 3 3s :80"},
		{where: "each", file: file, arguments: []string{"--capacity=3"}, want: "file [file.example too.example] 3 1s :80"},
	} {
		t.Run(c.where, func(t *testing.T) {
			if c.environment {
				for name, value := range map[string]string{"REGION": "environment", "NAMES": "environment.example", "CAPACITY": "2", "RAMP": "2s"} {
					t.Setenv("PLENUM_EDGE_"+name, value)
				}
			}
			var e edgeOptions
			flags := pflag.NewFlagSet("", pflag.ContinueOnError)
			e.flags(flags)
			if err := flags.Parse(c.arguments); err != nil {
				t.Fatal(err)
			}
			if err := configure(flags, c.file, edgeSettings); err != nil {
				t.Fatal(err)
			}
			got := strings.Join([]string{e.proxy.Region, flags.Lookup("name").Value.String(), flags.Lookup("capacity").Value.String(), e.ramp.String(), e.proxy.HTTP}, " ")
			if got = strings.ReplaceAll(got, ",", " "); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// TestConfigErrors name the place and the fix.
func TestConfigErrors(t *testing.T) {
	for text, want := range map[string]string{
		`signalling { region = "x" }`:    `hcl:1:1: Unsupported block type`,
		`edge { regio = "x" }`:           `"region"`,
		`edge { capacity = "many" }`:     `capacity`,
		`edge { region = { a = 1 } }`:    `not an object`,
		`edge { capacity = [1, [2]] }`:   `capacity wants a text, a number, or a list`,
		"edge {\n  region = \"x\"\n":     `hcl:1:6`,
		`edge { region = unknown }`:      `Variables may not be used here`,
		`account { password = "x" }`:     `name`,
		"\n\n  edge { capacity = \"\" }": `hcl:3:10`,
	} {
		file := filepath.Join(t.TempDir(), "plenum.hcl")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var e edgeOptions
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		e.flags(flags)
		if err := configure(flags, file, edgeSettings); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "plenum.hcl") {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
