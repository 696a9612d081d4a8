/** Help texts, made from the same tables that the parser reads. */
import { kebabCase, paramFields, rangeText } from '../engine/params';
import { commands, commonOptions, paramOptionsOf, type Command, type Option } from './options';

export function generalHelp(): string {
  return [
    'Usage: longsight <command> [options]',
    '',
    'Asks a local model about a whole folder and measures what it does.',
    '',
    'Commands:',
    ...table(commands.map((command) => [command.name, command.summary])),
    '',
    'longsight <command> --help lists the options; longsight --version prints the version.',
    'Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.',
    '',
  ].join('\n');
}

export function commandHelp(command: Command): string {
  const own = command.options.map((option): [string, string] => [
    flagText(option),
    option.description + (option.required ? ' (required)' : ''),
  ]);
  const params = paramOptionsOf(command).map((option): [string, string] => {
    const field = paramFields.find(({ name }) => kebabCase(name) === option.name)!;
    // The preset is no value of the parameter, but one of the flag.
    const range = rangeText(field) + (field.name === 'policy' ? ', paper' : '');
    return [flagText(option), `${field.description}; ${range} (${field.default})`];
  });
  return [
    `Usage: longsight ${command.name} [options]`,
    '',
    `${command.summary[0]!.toUpperCase()}${command.summary.slice(1)}.`,
    ...(own.length > 0 ? ['', 'Options:', ...table(own)] : []),
    '',
    'Common options:',
    ...table(commonOptions.map((option) => [flagText(option), option.description])),
    '',
    'SampleAttention (docs/sample-attention.md, section 5):',
    ...table(params),
    '',
    `Example: ${command.example}`,
    '',
  ].join('\n');
}

function flagText(option: Option): string {
  return `--${option.name}${option.value === undefined ? '' : ` ${option.value}`}`;
}

function table(rows: [string, string][]): string[] {
  const width = Math.max(...rows.map(([left]) => left.length));
  return rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`);
}
