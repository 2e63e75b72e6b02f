//go:build linux

package main

import "encoding/json"

// A node is one of Nomad's.
type node struct{ ID, Name, Status string }

// A report is what plenum status -o json says that the lab wants to know.
type report struct {
	Hosts  []struct{ Host, State string }
	Matrix []struct {
		Host  string
		Paths []struct {
			Plane, Host string
			Up          bool
		}
	}
}

// sight asks the real servers, with their own programs, who is there.
func (c *cluster) sight() (nodes []node, members string, r report, err error) {
	first := c.first()
	text, err := first.output("nomad", "node", "status", "-json")
	if err == nil {
		err = json.Unmarshal([]byte(text), &nodes)
	}
	if err == nil {
		members, err = first.output("consul", "members")
	}
	if err == nil {
		text, err = first.output("plenum", "status", "-o", "json")
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &r)
	}
	return nodes, members, r, err
}
