/** package.json says what the code does. Tests run with the repository root as working directory. */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { numberSettings } from '../../../extension/config';
import { paramFields, type ParamField } from '../../../extension/engine/params';
import { kvCacheTypes } from '../../../extension/engine/protocol';
import { samplingFields } from '../../../extension/engine/sampling';

interface Property {
  type: string;
  default: unknown;
  enum?: string[];
  enumItemLabels?: string[];
  enumDescriptions?: string[];
  minimum?: number;
  exclusiveMinimum?: number;
  maximum?: number;
  exclusiveMaximum?: number;
  multipleOf?: number;
  anyOf?: { const?: number; minimum?: number }[];
  scope: string;
  order: number;
  markdownDescription: string;
}

interface Manifest {
  activationEvents: string[];
  capabilities: { untrustedWorkspaces: { supported: string; restrictedConfigurations: string[] } };
  contributes: {
    commands: { command: string; title: string; category: string }[];
    configuration: { properties: Record<string, Property> }[];
  };
}

const manifest = JSON.parse(fs.readFileSync('package.json', 'utf8')) as Manifest;
const properties = Object.assign(
  {},
  ...manifest.contributes.configuration.map((group) => group.properties),
) as Record<string, Property>;

describe('package.json', () => {
  const hasSettingsFor = (group: string, fields: readonly ParamField<string>[]) => {
    const names = Object.keys(properties)
      .filter((key) => key.startsWith(`longsight.${group}.`))
      .map((key) => key.slice(`longsight.${group}.`.length));
    assert.deepEqual(names.sort(), fields.map((field) => field.name).sort());
    for (const field of fields) {
      const property = properties[`longsight.${group}.${field.name}`];
      assert.ok(property, field.name);
      assert.equal(property.default, field.default, `default of ${field.name}`);
      if (field.type === 'choice') {
        const preset = field.name === 'policy' ? ['paper'] : [];
        assert.deepEqual(property.enum, [...field.choices, ...preset], `choices of ${field.name}`);
        continue;
      }
      assert.equal(property.type, field.type, `type of ${field.name}`);
      const zeroIsExtra = field.zero !== undefined && field.min > 0;
      if (zeroIsExtra) {
        assert.deepEqual(property.anyOf, [{ const: 0 }, { minimum: field.min }]);
        assert.equal(property.minimum, 0);
      } else {
        assert.equal(property.minimum, field.openMin ? undefined : field.min, field.name);
        assert.equal(property.exclusiveMinimum, field.openMin ? field.min : undefined, field.name);
      }
      assert.equal(property.maximum, field.openMax ? undefined : field.max, field.name);
      assert.equal(property.exclusiveMaximum, field.openMax ? field.max : undefined, field.name);
      assert.equal(property.multipleOf, field.multipleOf, field.name);
    }
  };

  it('has a setting for each parameter of SampleAttention, with its default and range', () => {
    hasSettingsFor('sparsity', paramFields);
  });

  it('has a setting for each number of sampling, with its default and range', () => {
    hasSettingsFor('sampling', samplingFields);
  });

  it('gives the other numbers the ranges that the code checks', () => {
    for (const [key, range] of Object.entries(numberSettings)) {
      const property = properties[`longsight.${key}`];
      assert.equal(property?.type, 'fractions' in range ? 'number' : 'integer', key);
      assert.equal(property?.minimum, range.min, key);
      assert.equal(property?.maximum, range.max, key);
      assert.equal(property?.default, range.default, key);
    }
  });

  it('offers the types of the KV cache, and explains each choice of every setting', () => {
    const kvCache = properties['longsight.kvCache'];
    assert.deepEqual(kvCache?.enum, [...kvCacheTypes]);
    assert.equal(kvCache.default, kvCacheTypes[0]);
    for (const [key, property] of Object.entries(properties)) {
      assert.equal(property.enumItemLabels?.length, property.enum?.length, key);
      assert.equal(property.enumDescriptions?.length, property.enum?.length, key);
    }
  });

  it('keeps paths out of the hands of a workspace', () => {
    const paths = ['longsight.model', 'longsight.modelsFolder'];
    for (const key of paths) assert.equal(properties[key]?.scope, 'machine', key);
    assert.deepEqual(manifest.capabilities.untrustedWorkspaces, {
      ...manifest.capabilities.untrustedWorkspaces,
      supported: 'limited',
      restrictedConfigurations: paths,
    });
  });

  it('says at each sparsity setting that a change reads the workspace anew', () => {
    for (const [key, property] of Object.entries(properties)) {
      if (key.startsWith('longsight.sparsity.')) {
        assert.match(property.markdownDescription, /reads the workspace anew/, key);
      }
    }
  });

  it('orders settings without repetition', () => {
    const orders = Object.values(properties).map((property) => property.order);
    assert.equal(new Set(orders).size, orders.length);
  });

  it('names its commands in one category and activates on use only', () => {
    for (const command of manifest.contributes.commands) {
      assert.equal(command.category, 'Longsight');
      assert.match(command.command, /^longsight\./);
    }
    assert.deepEqual(
      manifest.contributes.commands.map((command) => command.title),
      [
        'Ask Workspace…',
        'Stop',
        'New Chat',
        'Select Model…',
        'Show Stats',
        'Show Log',
        'Delete Saved Sessions',
      ],
    );
    assert.deepEqual(manifest.activationEvents, []);
  });
});
