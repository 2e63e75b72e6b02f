package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/spf13/pflag"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

// A setting is a flag that the configuration file and the environment may set as well: the file by
// room { field = … }, the environment by PLENUM_ROOM_FIELD. Flags win over the environment, that over the file.
type setting struct{ flag, room, field string }

func (s setting) env() string {
	return "PLENUM_" + strings.ToUpper(s.room) + "_" + strings.ToUpper(s.field)
}

// configure fills the flags that the command line left alone from the environment and from the file at
// path, if there is one. Errors name the variable, or the file with line and column.
func configure(flags *pflag.FlagSet, path string, settings []setting) error {
	given := map[string]bool{}
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	for _, s := range settings {
		value, ok := os.LookupEnv(s.env())
		if !ok || given[s.flag] {
			continue
		}
		if err := flags.Set(s.flag, value); err != nil {
			return fmt.Errorf("%s in the environment: %w", s.env(), err)
		}
		given[s.flag] = true
	}
	if path == "" {
		return nil
	}
	attributes, err := readFile(path, settings)
	if err != nil {
		return err
	}
	for _, a := range attributes {
		if given[a.flag] {
			continue
		}
		if wanted := flags.Lookup(a.flag).Value.Type() == objectType; wanted != a.object {
			return fmt.Errorf("%s: %s", at(&a.where), map[bool]string{
				true:  "want an object: { key = value }",
				false: "want a text, a number, or a list of them, not an object",
			}[wanted])
		}
		for _, value := range a.values {
			if err := flags.Set(a.flag, value); err != nil {
				return fmt.Errorf("%s: %w", at(&a.where), err)
			}
		}
	}
	return nil
}

// objectType is the type of flags whose value is a JSON object; the file has it as an object of its own.
const objectType = "JSON"

// An object is such a flag.
type object map[string]any

func (o *object) Type() string { return objectType }

func (o *object) String() string {
	if len(*o) == 0 {
		return ""
	}
	text, err := json.Marshal(*o)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Set takes the whole object.
func (o *object) Set(text string) error {
	var m map[string]any
	if err := json.Unmarshal([]byte(text), &m); err != nil || m == nil {
		return errors.New("want a JSON object")
	}
	*o = m
	return nil
}

// An attribute is what the file says for one flag; flags that may be repeated take a list.
type attribute struct {
	flag   string
	values []string
	object bool // the value is one, as JSON
	where  hcl.Range
}

func readFile(path string, settings []setting) ([]attribute, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the configuration file cannot be read: %w", err)
	}
	file, diags := hclparse.NewParser().ParseHCL(text, path)
	if diags.HasErrors() {
		return nil, explain(diags)
	}
	content, diags := file.Body.Content(schema())
	if diags.HasErrors() {
		return nil, explain(diags)
	}
	var all []attribute
	for _, block := range content.Blocks {
		if block.Type == "account" {
			if !slices.ContainsFunc(settings, func(s setting) bool { return s.flag == "account" && s.room == "signaling" }) {
				continue
			}
			a, err := accountAttribute(block)
			if err != nil {
				return nil, err
			}
			all = append(all, a)
			continue
		}
		of := &hcl.BodySchema{}
		flags := map[string]string{}
		for _, s := range settings {
			if s.room == block.Type {
				of.Attributes = append(of.Attributes, hcl.AttributeSchema{Name: s.field})
				flags[s.field] = s.flag
			}
		}
		if len(flags) == 0 {
			continue // another room's
		}
		inner, diags := block.Body.Content(of)
		if diags.HasErrors() {
			return nil, explain(diags)
		}
		for name, a := range inner.Attributes {
			values, object, err := valuesOf(a)
			if err != nil {
				return nil, err
			}
			all = append(all, attribute{flags[name], values, object, a.Range})
		}
	}
	return all, nil
}

// blocks are what a file may have: one for each room, of which a command reads its own, and what is said of all.
var blocks = []string{"agent", "overlay", "signaling", "bridge", "edge", "jobs", "dev", "log"}

// schema lists the blocks, and account "NAME" { password = "…" }, which belongs to signaling.
func schema() *hcl.BodySchema {
	root := &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "account", LabelNames: []string{"name"}}}}
	for _, b := range blocks {
		root.Blocks = append(root.Blocks, hcl.BlockHeaderSchema{Type: b})
	}
	return root
}

func accountAttribute(block *hcl.Block) (attribute, error) {
	inner, diags := block.Body.Content(&hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "password", Required: true}}})
	if diags.HasErrors() {
		return attribute{}, explain(diags)
	}
	password, _, err := valuesOf(inner.Attributes["password"])
	if err != nil {
		return attribute{}, err
	}
	return attribute{"account", []string{block.Labels[0] + ":" + strings.Join(password, "")}, false, block.DefRange}, nil
}

// valuesOf returns the texts of an attribute, or the one of an object.
func valuesOf(a *hcl.Attribute) (values []string, object bool, err error) {
	value, diags := a.Expr.Value(nil)
	if diags.HasErrors() {
		return nil, false, explain(diags)
	}
	list := []cty.Value{value}
	switch {
	case value.IsNull():
	case value.Type().IsObjectType():
		text, err := ctyjson.Marshal(value, value.Type())
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", at(&a.Range), err)
		}
		return []string{string(text)}, true, nil
	case value.CanIterateElements():
		list = value.AsValueSlice()
	}
	for _, v := range list {
		s, err := convert.Convert(v, cty.String)
		if err != nil || s.IsNull() {
			return nil, false, fmt.Errorf("%s: %s wants a text, a number, or a list of them", at(&a.Range), a.Name)
		}
		values = append(values, s.AsString())
	}
	return values, false, nil
}

func at(r *hcl.Range) string {
	return fmt.Sprintf("%s:%d:%d", r.Filename, r.Start.Line, r.Start.Column)
}

// explain turns the first finding of the parser into one sentence with its place.
func explain(diags hcl.Diagnostics) error {
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		text := strings.TrimSuffix(d.Summary, ".") + ": " + d.Detail
		if d.Subject == nil {
			return errors.New(text)
		}
		return fmt.Errorf("%s: %s", at(d.Subject), text)
	}
	return diags
}
