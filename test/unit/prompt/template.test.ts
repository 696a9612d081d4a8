import assert from 'node:assert/strict';
import {
  canThink,
  renderChat,
  type ChatFormat,
  type Message,
} from '../../../extension/prompt/template';
import * as templates from './templates';

const format = (chatTemplate: string, rest: Partial<ChatFormat> = {}): ChatFormat => ({
  chatTemplate,
  bosText: '<s>',
  eosText: '</s>',
  addBos: true,
  ...rest,
});

const chat: Message[] = [
  { role: 'system', texts: ['RULES'] },
  { role: 'user', texts: ['FILE 1', 'FILE 2', 'Q1'] },
  { role: 'assistant', texts: ['A1'] },
  { role: 'user', texts: ['Q2'] },
];

const render = (chatFormat: ChatFormat, messages = chat, thinking = false) =>
  renderChat(chatFormat, messages, thinking)
    .map(({ text }) => text)
    .join('');

describe('template', () => {
  const expected: [keyof typeof templates, string][] = [
    [
      'smolLM2',
      '<s><|im_start|>system\nRULES<|im_end|>\n<|im_start|>user\nFILE 1FILE 2Q1<|im_end|>\n' +
        '<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n',
    ],
    [
      'llama3',
      '<s><|start_header_id|>system<|end_header_id|>\n\nRULES<|eot_id|>' +
        '<|start_header_id|>user<|end_header_id|>\n\nFILE 1FILE 2Q1<|eot_id|>' +
        '<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>' +
        '<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>' +
        '<|start_header_id|>assistant<|end_header_id|>\n\n',
    ],
    [
      'llama32',
      '<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' +
        'Today Date: 26 Jul 2024\n\nRULES<|eot_id|>' +
        '<|start_header_id|>user<|end_header_id|>\n\nFILE 1FILE 2Q1<|eot_id|>' +
        '<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>' +
        '<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>' +
        '<|start_header_id|>assistant<|end_header_id|>\n\n',
    ],
    ['mistral1', '<s>[INST] RULES\n\nFILE 1FILE 2Q1 [/INST]A1</s>[INST] Q2 [/INST]'],
    ['mistral3', '<s>[INST] RULES\n\nFILE 1FILE 2Q1[/INST] A1</s>[INST] Q2[/INST]'],
    [
      'qwen25',
      '<s><|im_start|>system\nRULES<|im_end|>\n<|im_start|>user\nFILE 1FILE 2Q1<|im_end|>\n' +
        '<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n',
    ],
    [
      'qwen3',
      '<s><|im_start|>system\nRULES<|im_end|>\n<|im_start|>user\nFILE 1FILE 2Q1<|im_end|>\n' +
        '<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n' +
        '<|im_start|>assistant\n<think>\n\n</think>\n\n',
    ],
    [
      'deepseekR1',
      '<s>RULES<|User|>FILE 1FILE 2Q1<|Assistant|>A1</s><|User|>Q2<|Assistant|><think>\n\n</think>\n\n',
    ],
    [
      'internlm2',
      '<s><|im_start|>system\nRULES<|im_end|>\n<|im_start|>user\nFILE 1FILE 2Q1<|im_end|>\n' +
        '<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n',
    ],
    [
      'chatglm3',
      '<s>[gMASK]sop<|system|>\n RULES<|user|>\n FILE 1FILE 2Q1<|assistant|>\n A1<|user|>\n Q2<|assistant|>',
    ],
    [
      'glm4Chat',
      '<s>[gMASK]<sop><|system|>\nRULES<|user|>\nFILE 1FILE 2Q1<|assistant|>\nA1<|user|>\nQ2<|assistant|>',
    ],
    [
      'glm40414',
      '<s>[gMASK]<sop><|system|>\nRULES<|user|>\nFILE 1FILE 2Q1<|assistant|>\nA1<|user|>\nQ2<|assistant|>',
    ],
    [
      'gemma',
      '<s><start_of_turn>user\nRULES\n\nFILE 1FILE 2Q1<end_of_turn>\n<start_of_turn>model\nA1' +
        '<end_of_turn>\n<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n',
    ],
    [
      'clock',
      '<s>[SYSTEM]Today is 26 Jul 2024.\n[system]RULES[user]FILE 1FILE 2Q1[assistant]A1[user]Q2',
    ],
  ];
  for (const [name, text] of expected) {
    it(`renders ${name}`, () => assert.equal(render(format(templates[name])), text));
  }

  it('marks as special what the template wrote, and nothing else', () => {
    for (const [name] of expected) {
      for (const piece of renderChat(format(templates[name]), chat, false)) {
        const ours = /^(RULES|FILE \d|[QA]\d)$/.test(piece.text);
        assert.equal(piece.special, !ours, `${name}: ${piece.text}`);
        assert.equal(piece.source !== null, ours, `${name}: ${piece.text}`);
      }
    }
  });

  it('keeps texts as they are, whatever they look like', () => {
    const odd = ['  <|im_end|>\n', '{{ bos_token }}{% endfor %}', ' slot0of1x slot0of2x ', ''];
    for (const [name] of expected) {
      const messages: Message[] = [
        { role: 'system', texts: ['RULES'] },
        { role: 'user', texts: odd },
      ];
      const pieces = renderChat(format(templates[name]), messages, false);
      const texts = pieces.filter(({ source }) => source?.message === 1);
      assert.deepEqual(
        texts.map(({ text }) => text),
        odd,
        name,
      );
    }
  });

  it('lets a model think when told to, and only one that can', () => {
    const ends: [keyof typeof templates, string][] = [
      ['qwen3', 'Q2<|im_end|>\n<|im_start|>assistant\n'],
      ['deepseekR1', 'Q2<|Assistant|><think>\n'],
    ];
    for (const [name, end] of ends) {
      assert.ok(render(format(templates[name]), chat, true).endsWith(end), name);
      assert.equal(canThink(format(templates[name])), true, name);
    }
    for (const name of ['smolLM2', 'llama32', 'mistral3', 'qwen25', 'gemma'] as const) {
      assert.equal(
        render(format(templates[name]), chat, true),
        render(format(templates[name])),
        name,
      );
      assert.equal(canThink(format(templates[name])), false, name);
    }
    assert.equal(canThink(format('')), false);
  });

  it('is not confused by a template that contains its placeholder', () => {
    const sly = `slot0of0x slot0of1x ${templates.smolLM2}`;
    assert.match(render(format(sly)), /^<s>slot0of0x slot0of1x <\|im_start\|>system\nRULES/);
  });

  it('starts with one BOS where the tokenizer wants one', () => {
    const count = (text: string) => text.split('<s>').length - 1;
    for (const [name] of expected) assert.equal(count(render(format(templates[name]))), 1, name);
    assert.equal(count(render(format(templates.smolLM2, { addBos: false }))), 0);
    assert.equal(count(render(format(templates.llama3, { addBos: false }))), 1);
    assert.equal(render(format('', { bosText: '' })).slice(0, 5), 'RULES');
    const [bos] = renderChat(format(''), chat, false);
    assert.deepEqual(bos, { text: '<s>', special: true, source: null });
  });

  it('uses plain paragraphs for a model without a template', () => {
    assert.equal(
      render(format('  \n')),
      '<s>RULES\n\nFILE 1FILE 2Q1\n\nAnswer: A1\n\nQ2\n\nAnswer:',
    );
    const special = renderChat(format(''), chat, false).filter((piece) => piece.special);
    assert.deepEqual(
      special.map(({ text }) => text),
      ['<s>'],
    );
  });

  const broken: [string, string, RegExp][] = [
    ['does not parse', '{% for message in messages %}', /cannot be parsed/],
    ['refuses everything', '{{ raise_exception("never") }}', /never/],
    ['drops messages', '{{ messages[0].content }}', /does not show the user message once/],
    ['repeats a message', `${templates.smolLM2}{{ messages[1].content }}`, /user message once/],
    ['changes contents', '{% for m in messages %}{{ m.content | upper }}{% endfor %}', /once/],
  ];
  for (const [name, chatTemplate, message] of broken) {
    it(`refuses a template that ${name}`, () => {
      assert.throws(() => render(format(chatTemplate)), { code: 'badChatTemplate', message });
    });
  }
});
