#pragma once

/// Text to tokens: tokenizer, chat templates, conversations. Needs PCRE2 and utf8proc.

#include "dflash/text/chat.hpp"
#include "dflash/text/chat_template.hpp"
#include "dflash/text/conversations.hpp"
#include "dflash/text/tokenizer.hpp"
